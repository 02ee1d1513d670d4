package connect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestFromURL(t *testing.T) {
	for _, tt := range []struct {
		url, network, address string
		tls                   bool
		user                  string
	}{
		{"http://p", "", "p:80", false, ""},
		{"http://p:3128/", "", "p:3128", false, ""},
		{"http://u:p@[fd00::1]", "", "[fd00::1]:80", false, "u:p"},
		{"https://p", "", "p:443", true, ""},
		{"https://u@p:8443", "", "p:8443", true, "u"},
		{"http+unix:///run/p.sock", "unix", "/run/p.sock", false, ""},
		{"http+unix:/run/p.sock", "unix", "/run/p.sock", false, ""},
	} {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		pd, err := FromURL(u, proxy.Direct)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		d := pd.(*Dialer)
		if d.Network != tt.network || d.Address != tt.address || (d.TLS != nil) != tt.tls || d.User.String() != tt.user || d.Forward != nil {
			t.Errorf("%s: %+v", tt.url, d)
		}
	}
	pd, err := FromURL(&url.URL{Scheme: "http+unix", Host: "%2Frun%2Fp.sock"}, nil)
	if err != nil || pd.(*Dialer).Address != "/run/p.sock" {
		t.Errorf("%+v, %v", pd, err)
	}
	for _, u := range []*url.URL{{Scheme: "socks5", Host: "p:1"}, {Scheme: "http"}, {Scheme: "https", Host: ":1"}, {Scheme: "http+unix"},
		{Scheme: "http+unix", Host: "%zz"}, {}} {
		if d, err := FromURL(u, nil); err == nil {
			t.Errorf("%v: %+v", u, d)
		}
	}
}

// registered runs with the schemes registered, which is for ever.
var registered = sync.OnceFunc(func() {
	for _, scheme := range []string{"http", "https", "http+unix"} {
		proxy.RegisterDialerType(scheme, FromURL)
	}
})

// TestRegister dials through [proxy.FromURL], chained over a forward dialer
// of each kind.
func TestRegister(t *testing.T) {
	registered()
	target := listenTCP(t)
	accept(t, target, echo)
	l, unix := listenTCP(t), listenUnix(t)
	serve(t, &Handler{}, l)
	serve(t, &Handler{}, unix)
	near, err := proxy.FromURL(&url.URL{Scheme: "http+unix", Path: unix.Addr().String()}, proxy.Direct)
	if err != nil {
		t.Fatal(err)
	}
	for name, forward := range map[string]proxy.Dialer{"none": proxy.Direct, "context": near, "plain": onlyDial{near}} {
		d, err := proxy.FromURL(&url.URL{Scheme: "http", Host: l.Addr().String()}, forward)
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.Dial("tcp", target.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := roundTrip(c, "hello"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type onlyDial struct{ d proxy.Dialer }

func (o onlyDial) Dial(network, address string) (net.Conn, error) { return o.d.Dial(network, address) }

// TestForwardWithoutContext ends a dial whose forward cannot be cancelled.
func TestForwardWithoutContext(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		conn, peer := tunneltest.Pipe()
		defer peer.Close()
		pd, err := FromURL(&url.URL{Scheme: "http", Host: "p"}, lateDial{conn})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err = pd.(*Dialer).DialContext(ctx, "tcp", "a:1")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if _, err := peer.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != time.Minute {
			t.Errorf("the late conn: %v after %v", err, time.Since(start))
		}
	})
}

type lateDial struct{ c net.Conn }

func (l lateDial) Dial(network, address string) (net.Conn, error) {
	time.Sleep(time.Minute)
	return l.c, nil
}

func TestFromConfig(t *testing.T) {
	var dialed []string
	stop := errors.New("stop")
	forward := func(_ context.Context, network, address string) (net.Conn, error) {
		dialed = append(dialed, network+" "+address)
		return nil, stop
	}
	for _, tt := range []struct {
		c             httpproxy.Config
		network, addr string
		want          string
	}{
		{httpproxy.Config{}, "tcp", "a:443", "tcp a:443"},
		{httpproxy.Config{HTTPSProxy: "http://p:1"}, "tcp", "a:443", "tcp p:1"},
		{httpproxy.Config{HTTPSProxy: "p:1"}, "tcp4", "a:22", "tcp p:1"},
		{httpproxy.Config{HTTPSProxy: "https://p"}, "tcp6", "[fd00::1]:22", "tcp p:443"},
		{httpproxy.Config{HTTPSProxy: "socks5://p"}, "tcp", "a:22", "tcp p:1080"},
		{httpproxy.Config{HTTPProxy: "http://p:1"}, "tcp", "a:80", "tcp a:80"},
		{httpproxy.Config{HTTPSProxy: "http://p:1", NoProxy: "a"}, "tcp", "x.a:443", "tcp x.a:443"},
		{httpproxy.Config{HTTPSProxy: "http://p:1", NoProxy: "10.0.0.0/8"}, "tcp", "10.1.2.3:443", "tcp 10.1.2.3:443"},
		{httpproxy.Config{HTTPSProxy: "http://p:1", NoProxy: "a:22"}, "tcp", "a:443", "tcp p:1"},
		{httpproxy.Config{HTTPSProxy: "http://p:1"}, "tcp", "localhost:443", "tcp localhost:443"},
		{httpproxy.Config{HTTPSProxy: "http://p:1"}, "tcp", "127.0.0.1:443", "tcp 127.0.0.1:443"},
		{httpproxy.Config{HTTPSProxy: "http://p:1"}, "unix", "/run/s", "unix /run/s"},
	} {
		dialed = nil
		_, err := FromConfig(&tt.c, forward)(t.Context(), tt.network, tt.addr)
		if len(dialed) != 1 || dialed[0] != tt.want || err == nil {
			t.Errorf("%+v, %s: dialled %q, %v, want %s", tt.c, tt.addr, dialed, err, tt.want)
		}
	}
	_, err := FromConfig(&httpproxy.Config{HTTPSProxy: "ftp://u:s3cret@p"}, nil)(t.Context(), "tcp", "a:1")
	if !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}

func TestFromEnvironment(t *testing.T) {
	target := listenTCP(t)
	accept(t, target, echo)
	l := listenTCP(t)
	serve(t, &Handler{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "inside.example:7" {
			return nil, ErrDNS
		}
		return directDial(ctx, network, target.Addr().String())
	}}, l)
	for _, name := range []string{"https_proxy", "HTTP_PROXY", "http_proxy", "no_proxy", "NO_PROXY", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTPS_PROXY", "http://"+l.Addr().String())
	c, err := FromEnvironment(nil)(t.Context(), "tcp", "inside.example:7")
	if err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(c, "hello"); err != nil {
		t.Error(err)
	}
	d := dialerFunc(FromEnvironment(nil))
	if _, err := d.Dial("tcp", "other.example:7"); !errors.Is(err, ErrDNS) {
		t.Errorf("got %v", err)
	}
}
