package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// Classify turns any error of a dial into an *Error with the reason that
// RFC 9209 has for it. An *Error anywhere in the chain of err is returned as
// it is, a bare [Reason] becomes the reason of a new one, and what nothing is
// known about becomes ErrInternal. The result is nil only if err is nil.
func Classify(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && e != nil {
		return e
	}
	return &Error{Reason: classify(err), Err: err}
}

func classify(err error) Reason {
	var reason Reason
	if errors.As(err, &reason) {
		return reason
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		if dns.IsTimeout {
			return ErrDNSTimeout
		}
		return ErrDNS
	}
	if r := classifyErrno(err); r != "" {
		return r
	}
	if isTLS(err) {
		return ErrTLS
	}
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return ErrTimeout
	case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrTerminated
	case errors.Is(err, fs.ErrNotExist): // the socket file of a Unix address
		return ErrUnavailable
	}
	var addr *net.AddrError
	var network net.UnknownNetworkError
	if errors.As(err, &addr) || errors.As(err, &network) {
		return ErrRequest
	}
	return ErrInternal
}

// classifyErrno knows what connect(2) answers; the numbers differ by platform.
func classifyErrno(err error) Reason {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return ""
	}
	switch portable(errno) {
	case syscall.ECONNREFUSED:
		return ErrRefused
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.EADDRNOTAVAIL,
		syscall.EAFNOSUPPORT:
		return ErrUnroutable
	case syscall.ETIMEDOUT:
		return ErrTimeout
	case syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE:
		return ErrTerminated
	case syscall.EACCES, syscall.EPERM: // a firewall of this host
		return ErrProhibited
	}
	return ""
}

func isTLS(err error) bool {
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var verify *tls.CertificateVerificationError
	return errors.As(err, &alert) || errors.As(err, &record) || errors.As(err, &verify)
}
