package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestReach goes through what a proxy can be, and counts how often it is asked.
func TestReach(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var asked []string // targets
		var answer error
		var now route
		set := func(err error, direct bool) {
			mu.Lock()
			defer mu.Unlock()
			answer, now.direct = err, direct
		}
		now.dial = func(ctx context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, address)
			if answer == nil {
				c, far := tunneltest.Pipe()
				far.Close()
				return c, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, answer
		}
		logs := clitest.NewOutput(t)
		r := &reach{way: &way{route: func() route {
			mu.Lock()
			defer mu.Unlock()
			return now
		}}, log: slog.New(slog.NewJSONHandler(logs, nil))}
		if err := r.ready(); err == nil {
			t.Error("ready before it has asked")
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		wait.Go(func() { _ = r.run(ctx) })
		check := func(after time.Duration, count int, want string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(asked) != count {
				t.Errorf("asked %d times, want %d: %v", len(asked), count, asked)
			}
			asked = nil
			if err := r.ready(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("ready: %v, want %q", err, want)
			}
		}
		dial := func(ctx context.Context) {
			c, err := r.dial(ctx, "tcp", "node:1")
			if err == nil {
				c.Close()
			}
		}
		check(time.Second, 1, "") // looks are at 0 s, 10 s …
		check(30*time.Second, 3, "")

		time.Sleep(7 * time.Second)
		dial(ctx) // at 38 s, so that 40 s need not ask
		check(3*time.Second, 1, "")

		set(&connect.Error{Reason: connect.ErrRefused, Proxy: "https://proxy", Header: http.Header{}}, false)
		check(20*time.Second, 2, "")

		set(&connect.Error{Reason: connect.ErrTLS, Proxy: "https://proxy", Err: errors.New("bad certificate")}, false)
		check(20*time.Second, 2, "bad certificate")
		dial(ctx)
		check(10*time.Second, 2, "bad certificate") // a bad state is looked at each time
		set(nil, false)
		dial(ctx)
		check(0, 1, "")

		gone, goAway := context.WithCancel(ctx)
		goAway()
		set(errors.New("slow"), false)
		dial(gone) // who gives up says nothing
		check(0, 1, "")

		set(errors.New("refused"), true)
		check(20*time.Second, 0, "")
		dial(ctx) // a target's failure
		check(0, 1, "")
		cancel()
		wait.Wait()
		if got := strings.Count(logs.String(), "can be reached"); got != 2 || strings.Count(logs.String(), "cannot be reached") != 1 {
			t.Errorf("the log says\n%s", logs)
		}
	})
}
