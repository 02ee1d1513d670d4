package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// testForward is one whose dial ends when the test says how, or with its
// context.
type testForward struct {
	forward
	client net.Conn // the far end of what it serves
	dialed chan net.Conn
	end    error // of serve
	log    bytes.Buffer
	wait   sync.WaitGroup
}

func startForward(ctx context.Context) *testForward {
	f := &testForward{dialed: make(chan net.Conn, 1)}
	f.forward = forward{
		target: "node:10250", dialTimeout: 30 * time.Second, log: slog.New(slog.NewTextHandler(&f.log, nil)),
		dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case c := <-f.dialed:
				return c, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
	client, c := tunneltest.Pipe()
	f.client = client
	f.wait.Go(func() { f.end = f.serve(ctx, c) })
	return f
}

// answer lets the dial succeed.
func (f *testForward) answer() (target net.Conn) {
	target, c := tunneltest.Pipe()
	f.dialed <- c
	return target
}

// TestEarly has a client speak, and half-close, before its target is there: with
// nothing, with little, and with more than is kept.
func TestEarly(t *testing.T) {
	for _, n := range []int{0, 5, maxEarly, 3 * maxEarly} {
		for _, before := range []bool{false, true} {
			tunneltest.Bubble(t, func(t *testing.T) {
				f := startForward(t.Context())
				text := strings.Repeat("x", n)
				if _, err := io.WriteString(f.client, text); err != nil {
					t.Fatal(err)
				}
				halfClose := f.client.(*tunneltest.Conn).CloseWrite
				if before {
					_ = halfClose()
				}
				time.Sleep(10 * time.Second)
				target := f.answer()
				if !before {
					time.Sleep(time.Second)
					_ = halfClose()
				}
				got, err := io.ReadAll(target)
				if string(got) != text || err != nil {
					t.Errorf("%d bytes: the target got %d, %v", n, len(got), err)
				}
				_, _ = io.WriteString(target, "banner")
				target.Close()
				if b, err := io.ReadAll(f.client); string(b) != "banner" || err != nil {
					t.Errorf("%d bytes: the client got %q, %v", n, b, err)
				}
				f.client.Close()
				if f.wait.Wait(); f.end != nil {
					t.Error(f.end)
				}
			})
		}
	}
}

// TestClientGone resets the client while the dial is under way, which ends it.
func TestClientGone(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		f := startForward(t.Context())
		start := time.Now()
		time.Sleep(3 * time.Second)
		f.client.(*tunneltest.Conn).Reset()
		f.wait.Wait()
		if d := time.Since(start); d != 3*time.Second || !errors.Is(f.end, errClientGone) {
			t.Errorf("after %v: %v", d, f.end)
		}
		if !strings.Contains(f.log.String(), "the client went away") {
			t.Errorf("the log says %s", &f.log)
		}
	})
}

// TestLateTarget has the target come when nobody waits for it any more.
func TestLateTarget(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		target, late := tunneltest.Pipe()
		f := &forward{dialTimeout: time.Minute, log: slog.New(slog.DiscardHandler),
			dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return late, nil
			}}
		client, c := tunneltest.Pipe()
		client.(*tunneltest.Conn).Reset()
		if err := f.serve(t.Context(), c); !errors.Is(err, errClientGone) {
			t.Errorf("got %v", err)
		}
		if _, err := target.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the late target got %v", err)
		}
	})
}

// TestForwardEnds shows by which bound a dial and a connection end, and that the
// client sees no orderly end.
func TestForwardEnds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		f := startForward(t.Context())
		start := time.Now()
		if _, err := f.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || time.Since(start) != 30*time.Second {
			t.Errorf("dial timeout: %v after %v", err, time.Since(start))
		}
		if f.wait.Wait(); !errors.Is(f.end, context.DeadlineExceeded) {
			t.Errorf("dial timeout: %v", f.end)
		}

		ctx, cancel := context.WithCancel(t.Context())
		f = startForward(ctx)
		time.AfterFunc(time.Second, cancel)
		if _, err := f.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("cut off while dialling: %v", err)
		}
		f.wait.Wait()

		ctx, cancel = context.WithCancel(t.Context())
		f = startForward(ctx)
		target := f.answer()
		time.AfterFunc(time.Second, cancel)
		for _, c := range []net.Conn{f.client, target} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("cut off: %v", err)
			}
		}
		f.wait.Wait()
	})
}
