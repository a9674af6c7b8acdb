// Command vitrail-explain explains a photo, or assembles a recorded stream, and writes the map.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	vitrailpb "vitrail/v1"
)

// gRPC itself tries again what ends UNAVAILABLE, and never after the first message of the answer.
const serviceConfig = `{
  "methodConfig": [{
    "name": [{"service": "vitrail.v1.ExplanationService"}],
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.2s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// retryBufferBytes is how large a request may be and still be tried again: it has the photo in it.
const retryBufferBytes = 64 << 20

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n\n%s", err, usage)
		os.Exit(2)
	}
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func run(o *options) error {
	began := time.Now()
	e := &explanation{}
	var err error
	if o.replay != "" {
		err = replay(o.replay, e)
	} else {
		err = explain(o, e)
	}
	if err != nil {
		return err
	}
	report(e, time.Since(began))
	if o.out == "" {
		return nil
	}
	return os.WriteFile(o.out, e.values, 0o644)
}

// explain calls the server and follows the map to its end, or until it is cancelled.
func explain(o *options, e *explanation) error {
	spec, err := specification(o)
	if err != nil {
		return err
	}
	security, err := transportSecurity(o)
	if err != nil {
		return err
	}
	connection, err := grpc.Dial(o.server, security, grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := callContext(o)
	defer cancel()
	stream, err := vitrailpb.NewExplanationServiceClient(connection).ExplainTiles(
		ctx, &vitrailpb.ExplainTilesRequest{Spec: spec}, grpc.MaxRetryRPCBufferSize(retryBufferBytes))
	if err != nil {
		return fromCall(err)
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return e.end()
		}
		if err != nil {
			return fromCall(err)
		}
		if err := follow(message, e); err != nil {
			return err
		}
		if o.cancelAfterTiles > 0 && e.tiles == o.cancelAfterTiles {
			return nil // the deferred cancel ends the call
		}
	}
}

// replay follows a recorded map: messages, each after its length as a varint.
func replay(path string, e *explanation) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := bufio.NewReader(file)
	for {
		length, err := binary.ReadUvarint(reader)
		if errors.Is(err, io.EOF) {
			return e.end()
		}
		if err != nil || length > maxMapBytes {
			return unreadable(path, "a message's length")
		}
		encoded := make([]byte, length)
		if _, err := io.ReadFull(reader, encoded); err != nil {
			return unreadable(path, "a message")
		}
		message := &vitrailpb.ExplainTilesResponse{}
		if err := proto.Unmarshal(encoded, message); err != nil {
			return unreadable(path, "a message")
		}
		if err := follow(message, e); err != nil {
			return err
		}
	}
}

func unreadable(path, what string) *failure {
	return &failure{code: code.Code_INTERNAL, message: fmt.Sprintf("%s: cannot read %s", path, what)}
}

func specification(o *options) (*vitrailpb.ExplanationSpec, error) {
	photo, err := os.ReadFile(o.photo)
	if err != nil {
		return nil, err
	}
	spec := &vitrailpb.ExplanationSpec{
		ModelName: o.model,
		Image:     &vitrailpb.Image{Source: &vitrailpb.Image_Encoded{Encoded: photo}},
	}
	if o.method == "gradient" {
		spec.Method = &vitrailpb.ExplanationSpec_Gradient{Gradient: &vitrailpb.Gradient{}}
	} else {
		spec.Method = &vitrailpb.ExplanationSpec_Occlusion{
			Occlusion: &vitrailpb.Occlusion{Patch: extent(o.patch), Stride: extent(o.stride)},
		}
	}
	if o.topK > 0 {
		spec.Targets = &vitrailpb.Targets{Choice: &vitrailpb.Targets_TopK{TopK: o.topK}}
	}
	if o.timeout > 0 {
		spec.TimeBudget = durationpb.New(o.timeout)
	}
	return spec, nil
}

func extent(pixels uint32) *vitrailpb.Extent {
	if pixels == 0 {
		return nil
	}
	return &vitrailpb.Extent{Rows: pixels, Columns: pixels}
}

// callContext returns the context of the call, with the token and the deadline.
//
// The server keeps the time budget and returns what it has; the deadline is the hard end, for a server or
// a network that does not answer.
func callContext(o *options) (context.Context, context.CancelFunc) {
	ctx := context.Background()
	if o.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+o.token)
	}
	if o.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, o.timeout+o.timeout/20+time.Second)
}

func transportSecurity(o *options) (grpc.DialOption, error) {
	if o.tlsCA == "" {
		return grpc.WithInsecure(), nil
	}
	authorities, err := os.ReadFile(o.tlsCA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("--tls-ca: %s holds no certificate in PEM form", o.tlsCA)
	}
	if o.tlsCert != "" {
		identity, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert: %w", err)
		}
		config.Certificates = []tls.Certificate{identity}
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config)), nil
}

// follow takes in one message and shows what it says.
func follow(message *vitrailpb.ExplainTilesResponse, e *explanation) error {
	before := percent(e)
	if err := e.receive(message); err != nil {
		return err
	}
	if message.GetPlan() != nil {
		showPlan(e.plan)
	} else if percent(e)/10 > before/10 {
		fmt.Fprintf(os.Stderr, "  %d %%: %d of %d evaluations, %d tiles\n",
			percent(e), e.evaluationsDone, e.plan.GetEvaluations(), e.tiles)
	}
	return nil
}

func showPlan(plan *vitrailpb.Plan) {
	shape := strings.Trim(strings.ReplaceAll(fmt.Sprint(plan.GetMapShape()), " ", ", "), "[]")
	fmt.Printf("%s version %d, map [%s], %d evaluations\n",
		plan.GetModelName(), plan.GetModelVersion(), shape, plan.GetEvaluations())
	for _, target := range plan.GetTargets() {
		name := fmt.Sprintf("output %d", target.GetIndex())
		if target.GetLabel() != "" {
			name = fmt.Sprintf("%s (%d)", target.GetLabel(), target.GetIndex())
		}
		fmt.Printf("  %s: output %.4f, score %.4f\n", name, target.GetOutput(), target.GetScore())
	}
}

func percent(e *explanation) uint64 {
	if e.plan.GetEvaluations() == 0 {
		return 0
	}
	return 100 * e.evaluationsDone / e.plan.GetEvaluations()
}

func report(e *explanation, took time.Duration) {
	for _, warnings := range [][]*vitrailpb.Warning{e.plan.GetWarnings(), e.summary.GetWarnings()} {
		for _, warning := range warnings {
			fmt.Printf("warning: %s\n", warning.GetMessage())
		}
	}
	outcome := "CANCELLED"
	if e.summary != nil {
		outcome = strings.TrimPrefix(e.summary.GetCompletion().String(), "COMPLETION_")
	}
	fmt.Printf("%s: %d of %d evaluations, %d tiles in %.3f s\n",
		outcome, e.evaluationsDone, e.plan.GetEvaluations(), e.tiles, took.Seconds())
}
