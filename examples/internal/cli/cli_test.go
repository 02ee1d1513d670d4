package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// TestSignals has the first signal drain and the second one cut off.
func TestSignals(t *testing.T) {
	signals := make(chan os.Signal, 2)
	ctx, stop := signalContext(signals)
	defer stop()
	if ctx.Err() != nil || Abort(ctx).Err() != nil {
		t.Fatal("ended before a signal")
	}
	g := NewGroup()
	var order []string
	g.Go("part", func() error {
		<-g.Context().Done()
		order = append(order, "part ended")
		return g.Context().Err()
	})
	signals <- syscall.SIGTERM
	err := g.Run(ctx, func(abort context.Context) error {
		order = append(order, "drain")
		if abort.Err() != nil {
			t.Error("aborted at the first signal")
		}
		signals <- os.Interrupt
		<-abort.Done()
		order = append(order, "abort")
		return context.Cause(abort)
	})
	if err == nil || !strings.Contains(err.Error(), "cut off: signal: interrupt") {
		t.Errorf("got %v", err)
	}
	if got := strings.Join(order, ", "); got != "drain, abort, part ended" {
		t.Errorf("order: %s", got)
	}
	if cause := context.Cause(ctx); cause == nil || cause.Error() != "signal: terminated" {
		t.Errorf("the cause is %v", cause)
	}
}

func TestStopWithoutSignal(t *testing.T) {
	ctx, stop := signalContext(make(chan os.Signal))
	stop()
	if ctx.Err() == nil || Abort(ctx).Err() == nil {
		t.Error("stop ended nothing")
	}
	if Abort(context.Background()).Done() != nil {
		t.Error("the abort of any context ends")
	}
}

// TestPartFails has a failing part end the program, and one that was only
// closed not.
func TestPartFails(t *testing.T) {
	g := NewGroup()
	broken := errors.New("broken")
	g.Go("closed", func() error { return net.ErrClosed })
	g.Go("first", func() error { return broken })
	g.Go("second", func() error { <-g.Context().Done(); return errors.New("late") })
	err := g.Run(context.Background(), func(context.Context) error { return nil })
	if !errors.Is(err, broken) || err.Error() != "first: broken" {
		t.Errorf("got %v", err)
	}
}

func TestExitCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{flag.ErrHelp, 0, ""},
		{Usagef("bad %s", "flag"), 2, "p: bad flag\np -h shows all flags.\n"},
		{errors.New("bad file"), 1, "p: bad file\n"},
	} {
		var out bytes.Buffer
		if code := exitCode("p", tc.err, &out); code != tc.code || out.String() != tc.text {
			t.Errorf("%v: %d %q", tc.err, code, &out)
		}
	}
}

func TestAdmin(t *testing.T) {
	var open Listeners
	defer open.Close()
	l, err := open.TCP("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	g := NewGroup()
	defer g.Stop()
	var notReady error
	g.Go("admin", func() error {
		return ServeAdmin(g.Context(), l, map[string]http.HandlerFunc{
			"GET /healthz": Alive(),
			"GET /readyz":  Check(func(*http.Request) error { return notReady }),
			"GET /list":    JSON(func() any { return []string{"a"} }),
		})
	})
	transport := &http.Transport{DisableKeepAlives: true}
	get := func(path string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var b bytes.Buffer
		_, _ = b.ReadFrom(res.Body)
		return res.StatusCode, b.String()
	}
	check := func(path string, code int, body string) {
		t.Helper()
		if c, b := get(path); c != code || b != body {
			t.Errorf("%s: %d %q", path, c, b)
		}
	}
	check("/healthz", 200, "ok\n")
	check("/debug/pprof/symbol", 404, "Unknown profile\n")
	check("/readyz", 200, "ok\n")
	check("/list", 200, "[\n  \"a\"\n]\n")
	check("/other", 404, "404 page not found\n")
	notReady = errors.New("not yet")
	check("/readyz", 503, "not yet\n")
}

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var open Listeners
	defer open.Close()
	for i := range 2 { // the second finds a socket that nobody listens on
		l, err := open.Unix(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			l.Close()
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != SocketMode {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if _, err := open.Unix(t.Context(), path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a socket in use: %v", err)
	}
	open.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left behind: %v", err)
	}
	if _, err := open.Unix(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := open.Unix(t.Context(), path+"/x/y"); err == nil {
		t.Error("a path that cannot be")
	}
}

func TestReadToken(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"abc.DEF-1\n": "", " abc ": "", "": "empty", "\n": "empty", "a b": "character", "a\nb": "character", "ä": "character",
		strings.Repeat("a", maxToken+1): "more than",
	} {
		file := filepath.Join(dir, "token")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		token, err := ReadToken(file)
		if want == "" && (err != nil || token != strings.TrimSpace(text)) {
			t.Errorf("%.20q: %q %v", text, token, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want) || token != "") {
			t.Errorf("%.20q: %q %v", text, token, err)
		}
	}
	if _, err := ReadToken(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestParse(t *testing.T) {
	for s, want := range map[string]certs.CA{
		"f":          {File: "f"},
		"a=f":        {Cluster: "a", File: "f"},
		"a=/d/b=c":   {Cluster: "a", File: "/d/b=c"},
		"/d/b=c/f":   {File: "/d/b=c/f"},
		"./b=c":      {File: "./b=c"},
		"":           {},
		"a=":         {},
		"=f":         {},
		"*=f":        {},
		"-a=f":       {},
		`C:\d\a=b\f`: {File: `C:\d\a=b\f`},
	} {
		got, err := ParseCA(s)
		if got != want || (err == nil) != (want.File != "") {
			t.Errorf("ParseCA(%q) = %v, %v", s, got, err)
		}
	}
	if what, cluster, err := ParseBinding("/a=b/s=c"); what != "/a=b/s" || cluster != "c" || err != nil {
		t.Errorf("ParseBinding: %q %q %v", what, cluster, err)
	}
	h := make(http.Header)
	if err := errors.Join(ParseHeader(h, "a: b"), ParseHeader(h, "A:c")); err != nil || len(h["A"]) != 2 {
		t.Errorf("ParseHeader: %v %v", h, err)
	}
	for _, s := range []string{"", "a", ":b", "a b:c", "a:b\r\nc:d"} {
		if ParseHeader(h, s) == nil {
			t.Errorf("ParseHeader(%q) is nil", s)
		}
	}
}

func TestFiles(t *testing.T) {
	ca, err := tunneltest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	file, err := ca.WriteFile(t.TempDir(), "ca")
	if err != nil {
		t.Fatal(err)
	}
	files := Files{&certs.Pool{CAs: []certs.CA{{File: file}}}}
	if err := errors.Join(files.Load(), files.Ready()); err != nil {
		t.Error(err)
	}
	g := NewGroup()
	files.Follow(g)
	g.Stop()
	files = append(files, &certs.Tokens{File: file + ".none"})
	if files.Load() == nil || files.Ready() == nil {
		t.Error("a file that is not there is no error")
	}
}

func TestIntBool(t *testing.T) {
	n, yes := 7, false
	f := NewFlags("p", "")
	f.Int(&n, "number", "a number")
	f.Bool(&yes, "yes", "no value")
	if err := f.Parse([]string{"--yes", "--number=8"}, nil); err != nil || n != 8 || !yes {
		t.Errorf("%d %t %v", n, yes, err)
	}
	if err := f.Parse([]string{"--number", "x"}, nil); err == nil || !strings.Contains(err.Error(), `invalid value "x" for flag --number`) {
		t.Errorf("got %v", err)
	}
	var out bytes.Buffer
	f.Help(&out)
	if want := "\n  --number N\n        a number (default 7)\n  --yes\n        no value\n"; out.String() != want {
		t.Errorf("help: %q", &out)
	}
}

func TestLog(t *testing.T) {
	f := NewFlags("p", "")
	var l Log
	l.Define(f)
	if err := errors.Join(f.Parse([]string{"--log-format=json", "--log-level=warn"}, nil), l.Check()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := l.Logger(&out)
	log.Info("a")
	log.Warn("b")
	if got := out.String(); !strings.HasPrefix(got, "{") || strings.Count(got, "\n") != 1 {
		t.Errorf("got %s", got)
	}
	if l.Level != slog.LevelWarn {
		t.Errorf("level %v", l.Level)
	}
}
