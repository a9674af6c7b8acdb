package main

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

// failure is something that the server refused or failed to do, or did against the rules.
type failure struct {
	code    code.Code
	message string
	// field is the path of the request's field at fault; empty where no field is.
	field string
	// retryDelay is after how long trying again makes sense; nil if it does not.
	retryDelay *time.Duration
}

func (f *failure) Error() string {
	text := fmt.Sprintf("%s: %s", f.code, f.message)
	if f.field != "" {
		text += "\n  field: " + f.field
	}
	if f.retryDelay != nil {
		text += fmt.Sprintf("\n  retry after: %g s", f.retryDelay.Seconds())
	}
	return text
}

// fromCall returns the failure behind the error that ended a call. Beside the status, its details
// (google.rpc messages) say which field is at fault and when to try again.
func fromCall(err error) *failure {
	found := status.Convert(err)
	f := &failure{code: code.Code(found.Code()), message: found.Message()}
	for _, detail := range found.Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				f.field = violation.GetField()
				break
			}
		case *errdetails.RetryInfo:
			delay := time.Duration(detail.GetRetryDelay().GetSeconds())*time.Second +
				time.Duration(detail.GetRetryDelay().GetNanos())
			f.retryDelay = &delay
		}
	}
	return f
}

// refused returns the failure of a server that broke the rules of the stream.
func refused(format string, arguments ...interface{}) *failure {
	return &failure{
		code:    code.Code_INTERNAL,
		message: "the server sent " + fmt.Sprintf(format, arguments...),
	}
}
