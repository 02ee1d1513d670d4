package entrypoint

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// A connection is reset when it is old, however busy it is.
func TestMaxDuration(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		route := w.routes()[0]
		route.Handler.(*Forward).MaxDuration = time.Hour
		w.set(route)
		c := w.dial("client", doorSNI)
		w.greeted(c, nameA)
		start := time.Now()
		if err := ended(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("it ended with %v", err)
		}
		if age := time.Since(start); age > time.Hour || age < 54*time.Minute {
			t.Errorf("after %v", age)
		}
		w.until("the log tells why", func() bool { return strings.Contains(w.log.String(), errMaxDuration.Error()) })
	})
}
