package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestAgentServers(t *testing.T) {
	for text, want := range map[string]string{
		"https://server":             "server:443",
		"https://server/":            "server:443",
		"https://server:9443":        "server:9443",
		"http://server":              "server:80",
		"https://[2001:db8::7]:9443": "[2001:db8::7]:9443",
	} {
		if u, err := parseServer(text); err != nil || u.hostport() != want {
			t.Errorf("%s: %s, %v; want %s", text, u.hostport(), err, want)
		}
	}
	for _, text := range []string{"", "server:443", "ftp://server", "https://", "https://:443", "https://u:p@server", "https://server/path", "https://server?q", "https://server#f", "https://ser ver"} {
		if _, err := parseServer(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	token := func(context.Context) (string, error) { return "t", nil }
	for name, a := range map[string]*Agent{
		"no servers":       {},
		"bad server":       {Servers: []string{"server"}},
		"token in clear":   {Servers: []string{"http://server"}, Token: token},
		"bad id":           {Servers: []string{"https://server"}, ID: "a b"},
		"bad destination":  {Servers: []string{"https://server"}, Serves: []string{"10.0.0.0/99"}},
		"closed meanwhile": closedAgent(),
	} {
		if err := a.Run(t.Context()); err == nil {
			t.Errorf("%s: Run did not mind", name)
		}
	}
	if err := closedAgent().Run(t.Context()); !errors.Is(err, ErrAgentClosed) {
		t.Errorf("Run after Close: %v", err)
	}
}

func closedAgent() *Agent {
	a := &Agent{Servers: []string{"https://server"}}
	a.Close()
	return a
}

func TestAgentResolve(t *testing.T) {
	u, err := parseServer("https://server:9443")
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("2001:db8::1")}, nil
	}}
	if got, err := a.resolve(t.Context(), u); err != nil || !slices.Equal(got, []string{"10.0.0.1:9443", "[2001:db8::1]:9443"}) {
		t.Errorf("%q, %v", got, err)
	}
	a.Resolve = nil
	a.Dial = (&tunneltest.Network{}).Dial
	if got, err := a.resolve(t.Context(), u); err != nil || !slices.Equal(got, []string{"server:9443"}) {
		t.Errorf("left to Dial: %q, %v", got, err)
	}
}

// A token is asked for each connection, and what is wrong with it is said.
func TestAgentToken(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.agent("a", "agent-1", func(a *Agent) {
			a.Token = func(context.Context) (string, error) { return "", errors.New("the file is gone") }
		})
		time.Sleep(time.Minute)
		if !w.log.has("cannot connect", "the file is gone") {
			t.Errorf("not logged\n%s", w.log)
		}
	})
}

func TestErrorsSpeakNet(t *testing.T) {
	for _, err := range []error{ErrReset, ErrSessionLost, &streamReset{by: "peer", reason: "x"}, &streamReset{cause: ErrSessionLost}} {
		if !errors.Is(err, syscall.ECONNRESET) || !errors.Is(err, ErrReset) {
			t.Errorf("%v is no reset", err)
		}
	}
	for _, err := range []error{ErrServerClosed, ErrAgentClosed} {
		if !errors.Is(err, net.ErrClosed) || errors.Is(err, ErrReset) || err.Error() == "" {
			t.Errorf("%v is not net.ErrClosed, or a reset", err)
		}
	}
	if errors.Is(ErrReset, ErrSessionLost) || errors.Is(ErrReset, io.EOF) {
		t.Error("every reset is the loss of the session, or an end of the data")
	}
}

// Bytes that the target sent along with the agent's 200 come first.
func TestConnEarlyBytes(t *testing.T) {
	opener, accepter := sessionPair(t)
	s, far := streamPair(t, opener, accepter)
	r := &registry{}
	cl, done := r.use("a")
	c := newConn(s, []byte("early "), "10.0.0.7:80", cl, done)
	if err := c.WaitRead(); err != nil {
		t.Error(err)
	}
	if err := errors.Join(c.SetDeadline(time.Now().Add(time.Minute)), c.SetWriteDeadline(time.Time{}), c.SetReadDeadline(time.Time{})); err != nil {
		t.Error(err)
	}
	if _, err := far.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	_ = far.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "early late" {
		t.Errorf("%q, %v", got, err)
	}
	if n := cl.counters.fromAgents.Load(); n != 10 {
		t.Errorf("%d bytes counted", n)
	}
	if c.RemoteAddr().Network() != "tcp" || c.LocalAddr() == nil {
		t.Error("addresses")
	}
	if err := c.Reset(); err != nil {
		t.Error(err)
	}
	if err := far.WaitReset(); !errors.Is(err, ErrReset) {
		t.Errorf("the far end of a conn that was reset: %v", err)
	}
	far.Close()
	if cl.users != 0 {
		t.Errorf("%d users after Reset", cl.users)
	}
	waitStreams(t, opener, accepter)
}
