package proxyproto

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const defaultDialTimeout = 20 * time.Second

// DialFunc is the shape of every dial function here and of
// [net.Dialer.DialContext]. The context governs the call and not the life of
// the conn.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// A Dialer dials and tells the other side whose connection it is, before
// anything else. Its zero value dials with package net and sends LOCAL, which
// says that this program speaks for itself. It is safe for concurrent use if
// its fields are not changed meanwhile, and it may be copied.
type Dialer struct {
	// Dial reaches the address; nil means a [net.Dialer] with a keep-alive of
	// 30 s, 10 s, 3 times.
	Dial DialFunc
	// Header gives the header for one dial: mostly what [HeaderOf] says of the
	// connection that is forwarded, sometimes with TLVs. c is the connection
	// just dialled, for its addresses. A nil header without an error means that
	// none is written. An error ends the dial. A nil func sends LOCAL in
	// version 2.
	Header func(ctx context.Context, c net.Conn) (*Header, error)
	// Timeout bounds the dial from the call to the header written. 0 means
	// 20 s; negative means that only the context bounds it.
	Timeout time.Duration
}

// DialContext dials and writes the header, in one write. The conn is the one
// that Dial returned, so that it half-closes as that does and can be spliced.
//
// The context governs the call and not the life of the conn. If it ends first,
// or anything fails, the conn is reset. Errors of Dial and of Header are
// returned as they are; a timeout afterwards is os.ErrDeadlineExceeded. Nothing
// runs on after the return.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	limit := d.Timeout
	if limit == 0 {
		limit = defaultDialTimeout
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	c, err := d.dial()(ctx, network, address)
	if err != nil {
		return nil, err
	}
	// From here on the end of the context resets the conn, which ends a write
	// that is under way.
	reset := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(reset)
		_ = relay.Reset(c)
	})
	err = d.greet(ctx, c, address)
	if !stop() {
		<-reset
		return nil, greetError(address, ctxError(ctx))
	}
	if err != nil {
		_ = relay.Reset(c)
		return nil, err
	}
	return c, nil
}

func (d *Dialer) dial() DialFunc {
	if d.Dial != nil {
		return d.Dial
	}
	return (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3,
	}}).DialContext
}

// greet sends the header.
func (d *Dialer) greet(ctx context.Context, c net.Conn, address string) error {
	h := &Header{Local: true}
	if d.Header != nil {
		var err error
		if h, err = d.Header(ctx, c); err != nil || h == nil {
			return err
		}
	}
	b, err := h.frame()
	if err == nil {
		err = writeFrame(c, b)
	}
	if err != nil {
		return greetError(address, err)
	}
	return nil
}

func greetError(address string, err error) error {
	return fmt.Errorf("proxyproto: header to %s: %w", address, err)
}

// ctxError says why the context ended. A deadline of a context is not one of
// package os by itself.
func ctxError(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	return err
}
