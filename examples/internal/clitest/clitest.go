// Package clitest runs the example programs in tests: their run function in
// this process or their binary in another, with certificates in files, and
// finds in their logs where they listen.
//
//	ca := clitest.NewCA(t)
//	cert, key := ca.Files("server", tunneltest.CertOptions{IPs: []string{"127.0.0.1"}})
//	p := clitest.Start(t, run, "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key, …)
//	conn, err := net.Dial("tcp", p.Addr("clients"))
//	err = p.Stop() // as SIGTERM does
//
// # What it does not do
//
// It is for the tests of this module's programs only.
package clitest

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Patience is how long anything may take that should take milliseconds.
const Patience = 20 * time.Second

// Program is one that runs.
type Program struct {
	*Output
	t     testing.TB
	drain context.CancelFunc
	abort context.CancelFunc
	done  chan struct{}
	err   error
}

// Start runs a program in this process, with its logs as JSON, until Stop or
// the end of the test.
func Start(t testing.TB, run func(ctx context.Context, args []string, stdout, stderr io.Writer) error, args ...string) *Program {
	t.Helper()
	abort, abortNow := context.WithCancel(context.Background())
	ctx, drain := context.WithCancel(cli.WithAbort(context.Background(), abort))
	p := &Program{Output: NewOutput(t), t: t, drain: drain, abort: abortNow, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		defer p.Output.end()
		p.err = run(ctx, append(args, "--log-format", "json", "--log-level", "debug"), io.Discard, p.Output)
	}()
	t.Cleanup(func() {
		abortNow()
		drain()
		<-p.done
	})
	return p
}

// Drain does what SIGTERM does, and does not wait.
func (p *Program) Drain() { p.drain() }

// Abort does what the second SIGTERM does.
func (p *Program) Abort() { p.abort() }

// Wait returns what run returned.
func (p *Program) Wait() error {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.t.Fatalf("the program does not end:\n%s", p.Output)
	}
	return p.err
}

// Stop drains and waits.
func (p *Program) Stop() error {
	p.t.Helper()
	p.drain()
	return p.Wait()
}

// CA is an authority whose certificates lie in files.
type CA struct {
	*tunneltest.CA
	t    testing.TB
	Dir  string
	File string // of the authority itself
}

// NewCA makes an authority in a folder of its own.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca, err := tunneltest.NewCA(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, err := ca.WriteFile(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	return &CA{CA: ca, t: t, Dir: dir, File: file}
}

// Issue makes a certificate.
func (ca *CA) Issue(o tunneltest.CertOptions) *tunneltest.Cert {
	ca.t.Helper()
	c, err := ca.CA.Issue(o)
	if err != nil {
		ca.t.Fatal(err)
	}
	return c
}

// Files makes a certificate in files.
func (ca *CA) Files(name string, o tunneltest.CertOptions) (certFile, keyFile string) {
	ca.t.Helper()
	certFile, keyFile, err := ca.Issue(o).WriteFiles(ca.Dir, name)
	if err != nil {
		ca.t.Fatal(err)
	}
	return certFile, keyFile
}

// Path is a file in the CA's folder.
func (ca *CA) Path(name string) string { return filepath.Join(ca.Dir, name) }

// Target starts an HTTP server that says hello, and returns its host:port.
func Target(t testing.TB) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello "+r.URL.Path)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// Client makes an HTTP client over a transport that is closed with the test.
func Client(t testing.TB, transport *http.Transport) *http.Client {
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: Patience}
}

// Get asks for a page.
func Get(t testing.TB, c *http.Client, url string) (status int, body string) {
	t.Helper()
	status, body, err := TryGet(t.Context(), c, url)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

// TryGet asks for a page, which may fail.
func TryGet(ctx context.Context, c *http.Client, url string) (status int, body string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	res, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// Eventually waits until f is nil.
func Eventually(t testing.TB, f func() error) {
	t.Helper()
	end := time.Now().Add(Patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still after %v: %v", Patience, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Output collects what a program writes and finds lines in it. Its zero value
// is not usable: see NewOutput.
type Output struct {
	t     testing.TB
	mu    sync.Mutex
	text  []byte
	ended bool
	more  chan struct{} // closed at the next write or end
}

// NewOutput makes an Output whose text is logged if the test fails.
func NewOutput(t testing.TB) *Output {
	o := &Output{t: t, more: make(chan struct{})}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs:\n%s", o)
		}
	})
	return o
}
