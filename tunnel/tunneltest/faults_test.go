package tunneltest

import (
	"context"
	"io"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestNetworkFreeze(t *testing.T) {
	for _, name := range []string{"server", "10.0.0.1", "server:443", "10.0.0.1:443", "client", ""} {
		t.Run(name, func(t *testing.T) {
			Bubble(t, func(t *testing.T) {
				var n Network
				l := mustListen(t, n.Listen, "server:443")
				other := mustListen(t, n.Listen, "other:443")
				client := n.Host("client")
				a, b := connect(t, client, l)
				x, y := connect(t, n.Host("bystander"), other)

				n.Freeze(name)
				mustWrite(t, a, "held back")
				b.SetReadDeadline(time.Now().Add(time.Minute))
				_, err := b.Read(make([]byte, 1))
				wantErr(t, "Read", err, os.ErrDeadlineExceeded)
				if name != "" {
					mustWrite(t, x, "free")
					mustRead(t, y, "free")
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				elapsed(t, time.Minute, func() {
					_, err := client.Dial(ctx, "tcp", "server:443")
					wantErr(t, "Dial", err, context.DeadlineExceeded)
				})

				// A dial that waits gets through after the thaw.
				dialled := make(chan error)
				go func() {
					c, err := client.Dial(t.Context(), "tcp", "server:443")
					if err == nil {
						c.Close()
					}
					dialled <- err
				}()
				synctest.Wait()
				b.SetReadDeadline(time.Time{})
				n.Thaw(name)
				mustRead(t, b, "held back")
				if err := <-dialled; err != nil {
					t.Errorf("Dial after the thaw: %v", err)
				}
			})
		})
	}
}

func TestFreezeOfOnePortSparesOthers(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var n Network
		mustListen(t, n.Listen, "server:443")
		l := mustListen(t, n.Listen, "server:80")
		n.Freeze("server:443")
		a, b := connect(t, n.Host("client"), l)
		mustWrite(t, a, "x")
		mustRead(t, b, "x")
	})
}

func TestNetworkDelay(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var n Network
		l := mustListen(t, n.Listen, "server:443")
		client := n.Host("client")
		n.SetDelay("", "", time.Hour)
		n.SetDelay("", "server", time.Minute)
		n.SetDelay("client", "", 30*time.Second)
		n.SetDelay("client", "server", 2*time.Second) // the most special one counts
		n.SetDelay("server", "client", 3*time.Second)

		var a, b *Conn
		elapsed(t, 5*time.Second, func() { a, b = connect(t, client, l) })
		elapsed(t, 2*time.Second, func() { mustWrite(t, a, "there"); mustRead(t, b, "there") })
		elapsed(t, 3*time.Second, func() { mustWrite(t, b, "back"); mustRead(t, a, "back") })
		elapsed(t, 5*time.Second, func() {
			_, err := client.Dial(t.Context(), "tcp", "server:80")
			wantErr(t, "Dial", err, syscall.ECONNREFUSED)
		})
		n.SetDelay("client", "server", 0)
		elapsed(t, 30*time.Second, func() { mustWrite(t, a, "there"); mustRead(t, b, "there") })
		n.SetDelay("client", "", -1)
		elapsed(t, time.Minute, func() { mustWrite(t, a, "there"); mustRead(t, b, "there") })
		a.SetDelay(time.Second) // comes on top
		elapsed(t, time.Minute+time.Second, func() { mustWrite(t, a, "there"); mustRead(t, b, "there") })
	})
}

// The end of a dial's context counts on every leg of the handshake, and a
// connection that the listener already has is reset.
func TestDialGivesUpOnTheWay(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var n Network
		l := mustListen(t, n.Listen, "server:443")
		client := n.Host("client")
		n.SetDelay("client", "server", 10*time.Second)
		n.SetDelay("server", "client", 10*time.Second)
		for _, tt := range []struct {
			address string
			after   time.Duration
		}{{"server:443", 5 * time.Second}, {"server:443", 15 * time.Second}, {"server:80", 15 * time.Second}} {
			ctx, cancel := context.WithTimeout(t.Context(), tt.after)
			elapsed(t, tt.after, func() {
				_, err := client.Dial(ctx, "tcp", tt.address)
				wantErr(t, "Dial", err, context.DeadlineExceeded)
			})
			cancel()
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Read(make([]byte, 1))
		wantErr(t, "Read of what its dialler gave up", err, syscall.ECONNRESET)
		c.Close()

		// Two minutes each way is more than a kernel waits.
		n.SetDelay("client", "server", 2*time.Minute)
		elapsed(t, synTimeout, func() {
			n.SetDelay("server", "client", 2*time.Minute)
			_, err := client.Dial(t.Context(), "tcp", "server:443")
			wantErr(t, "Dial", err, syscall.ETIMEDOUT)
		})
	})
}

func TestNetworkCut(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var n Network
		l := mustListen(t, n.Listen, "server:443")
		other := mustListen(t, n.Listen, "other:443")
		a, b := connect(t, n.Host("client"), l)
		x, y := connect(t, n.Host("client"), other)
		n.Freeze("server")
		if got := n.Cut("server"); got != 1 {
			t.Errorf("Cut met %d connections, want 1", got)
		}
		for _, c := range []io.Reader{a, b} {
			_, err := c.Read(make([]byte, 1))
			wantErr(t, "Read", err, syscall.ECONNRESET)
		}
		mustWrite(t, x, "free")
		mustRead(t, y, "free")
		if got := n.Cut(""); got != 2 { // those that were cut are there until they are closed
			t.Errorf("Cut met %d connections, want 2", got)
		}
	})
}

func TestFaultsOfUnixSockets(t *testing.T) {
	Bubble(t, func(t *testing.T) {
		var n Network
		l, err := n.Listen("unix", "/run/s")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := n.Dial(t.Context(), "unix", "/run/s")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, _ := l.Accept()
		defer s.Close()
		n.Freeze("/run/s")
		mustWrite(t, c, "x")
		s.SetReadDeadline(time.Now().Add(time.Second))
		_, err = s.Read(make([]byte, 1))
		wantErr(t, "Read", err, os.ErrDeadlineExceeded)
		if n.Cut("/run/other") != 0 || n.Cut("/run/s") != 1 {
			t.Error("Cut met the wrong socket")
		}
	})
}
