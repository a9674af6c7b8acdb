package main

// The command line. It is the same in every language.

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"time"
)

const usage = `Explains what a model saw in a photo: a map, assembled while it is computed.

usage: vitrail-explain [OPTIONS] --model NAME PHOTO
       vitrail-explain [OPTIONS] --replay FILE

  --server HOST:PORT       where the server is (default localhost:8001)
  --model NAME             the model whose answer is explained
  --method METHOD          gradient or occlusion (default gradient)
  --patch PIXELS           occlusion: the side of the hidden window
  --stride PIXELS          occlusion: the step to the next window (default: the patch)
  --top-k N                explain the N highest outputs (default: the server's choice)
  --timeout SECONDS        return what there is by then; the call's deadline is a little later
  --cancel-after-tiles N   cancel the call after N tiles
  --out FILE               write the map: little-endian float32, row-major, NaN without a value
  --replay FILE            assemble a recorded stream instead of calling a server
  --tls-ca FILE            encrypt, and trust these certificates (PEM)
  --tls-cert FILE          identify the caller by this certificate (PEM), with --tls-key
  --tls-key FILE           the certificate's private key (PEM)
  --help                   show this

A token for the server is read from VITRAIL_TOKEN.
`

// options is what the command line asks for; what was not given is zero.
type options struct {
	photo                  string
	server                 string
	model                  string
	method                 string
	patch, stride, topK    uint32
	timeout                time.Duration
	cancelAfterTiles       uint32
	out                    string
	replay                 string
	tlsCA, tlsCert, tlsKey string
	token                  string
}

// parse returns flag.ErrHelp for --help, and any other error for a command line that is wrong.
func parse(arguments []string) (*options, error) {
	o := &options{token: os.Getenv("VITRAIL_TOKEN")}
	flags := flag.NewFlagSet("vitrail-explain", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.server, "server", "localhost:8001", "")
	flags.StringVar(&o.model, "model", "", "")
	flags.StringVar(&o.method, "method", "gradient", "")
	flags.Func("patch", "", whole(&o.patch))
	flags.Func("stride", "", whole(&o.stride))
	flags.Func("top-k", "", whole(&o.topK))
	flags.Func("timeout", "", seconds(&o.timeout))
	flags.Func("cancel-after-tiles", "", whole(&o.cancelAfterTiles))
	flags.StringVar(&o.out, "out", "", "")
	flags.StringVar(&o.replay, "replay", "", "")
	flags.StringVar(&o.tlsCA, "tls-ca", "", "")
	flags.StringVar(&o.tlsCert, "tls-cert", "", "")
	flags.StringVar(&o.tlsKey, "tls-key", "", "")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	o.photo = flags.Arg(0)
	switch {
	case o.replay == "" && (o.model == "" || flags.NArg() != 1):
		return nil, errors.New("--model and one PHOTO are needed")
	case o.method != "gradient" && o.method != "occlusion":
		return nil, fmt.Errorf("--method is %s; it must be gradient or occlusion", o.method)
	case o.method != "occlusion" && (o.patch != 0 || o.stride != 0):
		return nil, errors.New("--patch and --stride need --method occlusion")
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return nil, errors.New("--tls-cert and --tls-key need each other")
	case o.tlsCert != "" && o.tlsCA == "":
		return nil, errors.New("--tls-cert needs --tls-ca")
	}
	return o, nil
}

func whole(into *uint32) func(string) error {
	return func(text string) error {
		number, err := strconv.ParseUint(text, 10, 32)
		if err != nil || number < 1 {
			return errors.New("it must be a whole number from 1 on")
		}
		*into = uint32(number)
		return nil
	}
}

func seconds(into *time.Duration) func(string) error {
	return func(text string) error {
		number, err := strconv.ParseFloat(text, 64)
		if err != nil || !(number > 0 && number < math.MaxInt64/float64(time.Second)) {
			return errors.New("it must be a number above 0")
		}
		*into = time.Duration(number * float64(time.Second))
		return nil
	}
}
