package entrypoint

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Status tells of a backend that could not be dialled, also where it is the only
// one, and not of what is no fault of it.
func TestForwardStatus(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		var err error
		f := &Forward{Backends: []string{"only:1"}, Dial: func(context.Context, string, string) (net.Conn, error) {
			if err != nil {
				return nil, err
			}
			c, far := tunneltest.Pipe()
			far.Close()
			return c, nil
		}}
		for _, step := range []struct {
			err  error
			sick time.Duration
		}{
			{syscall.EMFILE, 0}, {syscall.ECONNREFUSED, time.Second}, {nil, 0},
		} {
			err = step.err
			c, got := f.dial(t.Context(), &Info{})
			if !errors.Is(got, step.err) {
				t.Fatal(got)
			}
			if c != nil {
				c.Close()
			}
			want := time.Time{}
			if step.sick > 0 {
				want = time.Now().Add(step.sick)
			}
			if s := f.Status(); len(s) != 1 || s[0] != (BackendStatus{"only:1", want}) {
				t.Errorf("after %v: %+v", step.err, s)
			}
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		err = context.Canceled
		if _, got := f.dial(gone, &Info{}); got == nil || !f.Status()[0].SickUntil.IsZero() {
			t.Errorf("a client that went away: %v, %+v", got, f.Status())
		}
	})
}
