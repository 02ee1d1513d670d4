package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
)

var reasons = map[Reason]int{ErrRequest: 400, ErrAuth: 407, ErrDenied: 403, ErrProhibited: 403, ErrLimit: 429,
	ErrInternal: 500, ErrConfig: 500, ErrRefused: 502, ErrDNS: 502, ErrUnroutable: 502, ErrTerminated: 502,
	ErrProtocol: 502, ErrTLS: 502, ErrUnavailable: 503, ErrTimeout: 504, ErrDNSTimeout: 504, "": 500, "proxy_loop_detected": 502}

func TestReason(t *testing.T) {
	for reason, status := range reasons {
		if got := reason.Status(); got != status {
			t.Errorf("%v: status %d, want %d", reason, got, status)
		}
		err := fmt.Errorf("outer: %w", &Error{Reason: reason, Err: io.EOF})
		if reason != "" && !errors.Is(err, reason) {
			t.Errorf("%v is not found", reason)
		}
		for other := range reasons {
			if other != reason && other != "" && reason != "" && errors.Is(err, other) {
				t.Errorf("%v is %v", reason, other)
			}
		}
		timeout := reason == ErrTimeout || reason == ErrDNSTimeout
		var ne net.Error
		if !errors.As(err, &ne) || ne.Timeout() != timeout || errors.Is(err, os.ErrDeadlineExceeded) != timeout {
			t.Errorf("%v: Timeout %v", reason, ne.Timeout())
		}
		if errors.Is(err, syscall.ECONNREFUSED) != (reason == ErrRefused) {
			t.Errorf("%v and ECONNREFUSED", reason)
		}
		if temporary := timeout || reason == ErrLimit || reason == ErrUnavailable; Classify(err).Temporary() != temporary {
			t.Errorf("%v: Temporary %v", reason, !temporary)
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%v: the cause is not found", reason)
		}
	}
}

func TestClassify(t *testing.T) {
	opError := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	errno := func(e syscall.Errno) error { return opError(os.NewSyscallError("connect", e)) }
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	_, dialCanceled := (&net.Dialer{}).DialContext(canceled, "tcp", "127.0.0.1:1")
	_, badPort := net.Dial("tcp", "127.0.0.1:99999")
	_, badNetwork := net.Dial("nonsense", "127.0.0.1:1")
	for _, tt := range []struct {
		err  error
		want Reason
	}{
		{errno(syscall.ECONNREFUSED), ErrRefused},
		{errno(syscall.EHOSTUNREACH), ErrUnroutable},
		{errno(syscall.ENETUNREACH), ErrUnroutable},
		{errno(syscall.ETIMEDOUT), ErrTimeout},
		{errno(syscall.ECONNRESET), ErrTerminated},
		{errno(syscall.EPIPE), ErrTerminated},
		{errno(syscall.EACCES), ErrProhibited},
		{errno(syscall.EMFILE), ErrInternal},
		{opError(&net.DNSError{IsNotFound: true}), ErrDNS},
		{opError(&net.DNSError{IsTimeout: true}), ErrDNSTimeout},
		{context.DeadlineExceeded, ErrTimeout},
		{os.ErrDeadlineExceeded, ErrTimeout},
		{context.Canceled, ErrTerminated},
		{dialCanceled, ErrTerminated},
		{io.EOF, ErrTerminated},
		{io.ErrUnexpectedEOF, ErrTerminated},
		{net.ErrClosed, ErrTerminated},
		{badPort, ErrRequest},
		{badNetwork, ErrRequest},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, ErrTLS},
		{tls.AlertError(40), ErrTLS},
		{opError(&fs.PathError{Err: syscall.ENOENT}), ErrUnavailable},
		{fmt.Errorf("x: %w", ErrLimit), ErrLimit},
		{errors.New("?"), ErrInternal},
	} {
		e := Classify(fmt.Errorf("outer: %w", tt.err))
		if e.Reason != tt.want || !errors.Is(e, tt.err) {
			t.Errorf("%v: %v, want %v", tt.err, e.Reason, tt.want)
		}
	}
	if Classify(nil) != nil {
		t.Error("nil is an error")
	}
	inner := &Error{Reason: ErrDNS}
	if Classify(fmt.Errorf("x: %w", inner)) != inner {
		t.Error("an *Error does not stay what it is")
	}
}

func TestErrorText(t *testing.T) {
	for _, tt := range []struct {
		err  *Error
		want string
	}{
		{nil, "<nil>"},
		{&Error{}, "connect: proxy_internal_error"},
		{&Error{Reason: ErrDNS, Err: ErrDNS}, "connect: dns_error"},
		{&Error{Reason: ErrDNS, Target: "a:1", Err: io.EOF}, "connect: a:1: dns_error: EOF"},
		{&Error{Reason: ErrTLS, Proxy: "https://p:1", Target: "a:1", Detail: "d", Err: io.EOF},
			"connect: a:1 through proxy https://p:1: tls_protocol_error: d"},
		{&Error{Reason: ErrTLS, Proxy: "https://p:1"}, "connect: proxy https://p:1: tls_protocol_error"},
		{&Error{Reason: ErrRefused, Proxy: "https://p:1", Target: "a:1", Detail: "d", Header: http.Header{}},
			"connect: proxy https://p:1 refused a:1: 502 connection_refused: d"},
		{&Error{Reason: ErrRefused, Err: &Error{Reason: ErrRefused, Err: io.EOF}}, "connect: connection_refused: EOF"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestNilError(t *testing.T) {
	var e *Error
	if e.Timeout() || e.Temporary() || e.Unwrap() != nil || e.Answered() {
		t.Error("a nil *Error says something")
	}
	if errors.Is(&Error{}, ErrInternal) == false {
		t.Error("no reason is not ErrInternal")
	}
}
