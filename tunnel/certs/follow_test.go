package certs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestRotation follows a pair through a rotation that is seen half done, in
// fake time: the old pair serves until the second half has arrived.
func TestRotation(t *testing.T) {
	ca := newCA(t, "ca")
	old := issue(t, ca, tunneltest.CertOptions{CommonName: "old", Server: true})
	fresh := issue(t, ca, tunneltest.CertOptions{CommonName: "new", Server: true})
	dir := t.TempDir()
	tunneltest.Bubble(t, func(t *testing.T) {
		var log logBuffer
		k := pairFor(t, dir, old)
		k.Logger = log.logger()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Run(ctx) }()
		synctest.Wait()
		serves := func(want string) {
			t.Helper()
			if got := k.Certificate().Leaf.Subject.CommonName; got != want {
				t.Fatalf("serves %q, want %q", got, want)
			}
		}
		serves("old")

		changed := k.Changed()
		write(t, k.CertFile, fresh.CertPEM) // the key is still the old one
		for range 6 {
			time.Sleep(DefaultInterval)
			synctest.Wait()
			serves("old")
		}
		if n := log.count("the old content stays in use"); n != 1 {
			t.Errorf("half a rotation was logged %d times in a minute, want once", n)
		}
		if isClosed(changed) {
			t.Error("Changed without a change")
		}

		write(t, k.KeyFile, fresh.KeyPEM)
		time.Sleep(DefaultInterval - time.Millisecond)
		synctest.Wait()
		serves("old")
		time.Sleep(time.Millisecond)
		synctest.Wait()
		serves("new")
		if !isClosed(changed) {
			t.Error("no Changed after a change")
		}

		// Bad content that goes away again is no change.
		changed = k.Changed()
		write(t, k.KeyFile, []byte("garbage"))
		time.Sleep(DefaultInterval)
		synctest.Wait() // the look at this instant is over
		write(t, k.KeyFile, fresh.KeyPEM)
		time.Sleep(DefaultInterval)
		synctest.Wait()
		serves("new")
		if isClosed(changed) {
			t.Error("Changed although the content is what it was")
		}
		if n := log.count("is good again"); n != 1 {
			t.Errorf("recovery was logged %d times, want once", n)
		}
		// The same bad content later is news.
		write(t, k.KeyFile, []byte("garbage"))
		time.Sleep(2 * DefaultInterval)
		synctest.Wait()
		if n := log.count("the old content stays in use"); n != 3 {
			t.Errorf("%d lines about bad content, want 3:\n%s", n, log.b.String())
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v, want nil", err)
		}
		if log.count("PRIVATE KEY") != 0 {
			t.Error("a key was logged")
		}
	})
}

func TestBadFiles(t *testing.T) {
	ca := newCA(t, "ca")
	good := issue(t, ca, tunneltest.CertOptions{CommonName: "good"})
	dir := t.TempDir()
	k := pairFor(t, dir, good)
	if err := k.Load(); err != nil {
		t.Fatal(err)
	}
	first := k.Certificate()
	for _, bad := range []struct {
		name, want string
		spoil      func()
	}{
		{"missing", "no such file", func() { os.Remove(k.CertFile) }},
		{"directory", "not a regular file", func() { os.Remove(k.CertFile); os.Mkdir(k.CertFile, 0o700) }},
		{"too large", "larger than", func() { os.Remove(k.CertFile); write(t, k.CertFile, make([]byte, MaxFileSize+1)) }},
		{"empty", "failed to find any PEM data", func() { write(t, k.CertFile, nil) }},
		{"swapped", "PEM", func() { write(t, k.CertFile, good.KeyPEM) }},
	} {
		bad.spoil()
		if err := k.Load(); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: Load says %v, want %q", bad.name, err, bad.want)
		}
		if k.Certificate() != first || k.Ready() != nil {
			t.Errorf("%s: the old pair is gone", bad.name)
		}
	}
	write(t, k.CertFile, good.CertPEM)
	if err := k.Load(); err != nil {
		t.Errorf("good again: %v", err)
	}
	if k.Certificate() != first {
		t.Error("the same content was loaded twice")
	}
}

// TestSwapBetweenReads has the pair change between the reads of its two files:
// the second look at once makes it good, and nobody hears of it.
func TestSwapBetweenReads(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, []byte("1"))
	write(t, b, []byte("1"))
	var f follower[string]
	parses := 0
	s := source[string]{files: []string{a, b}, describe: func(*string) []any { return nil }, parse: func(c [][]byte) (*string, error) {
		parses++
		if parses == 2 {
			write(t, b, []byte("2")) // arrives after the files were read
		}
		if string(c[0]) != string(c[1]) {
			return nil, errors.New("mismatch")
		}
		v := string(c[0])
		return &v, nil
	}}
	if err := f.load(s, false); err != nil {
		t.Fatal(err)
	}
	write(t, a, []byte("2"))
	if err := f.load(s, false); err != nil || *f.value.Load() != "2" {
		t.Errorf("load: %v, value %s; want 2", err, *f.value.Load())
	}
	if parses != 3 {
		t.Errorf("%d parses, want 3", parses)
	}
}

func TestFirstUseLoads(t *testing.T) {
	ca := newCA(t, "ca")
	good := issue(t, ca, tunneltest.CertOptions{CommonName: "good"})
	dir := t.TempDir()
	tunneltest.Bubble(t, func(t *testing.T) {
		var log logBuffer
		k := &KeyPair{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), Logger: log.logger()}
		if _, err := k.GetCertificate(nil); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("GetCertificate says %v, want that the file is missing", err)
		}
		pairFor(t, dir, good)
		if k.Certificate() != nil {
			t.Error("files were read again within a second")
		}
		time.Sleep(retryInterval)
		if k.Certificate() == nil {
			t.Error("no certificate although the files are good by now")
		}
		if n := log.count("nothing to use yet"); n != 1 {
			t.Errorf("%d lines about missing files, want 1", n)
		}
	})
}

func TestRefresh(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tokens")
	entry := func(token string) []byte {
		return fmt.Appendf(nil, "- cluster: a\n  sha256: %s\n", HashToken(token))
	}
	tunneltest.Bubble(t, func(t *testing.T) {
		knows := func(tok *Tokens, token string) bool {
			t.Helper()
			_, err := tok.Lookup(token)
			return err == nil
		}
		var log logBuffer
		tok := &Tokens{File: file, Interval: time.Minute, Logger: log.logger()}
		if err := tok.Refresh(); err == nil {
			t.Error("Refresh of a missing file: nil")
		}
		if err := tok.Refresh(); err == nil {
			t.Error("Refresh of a missing file at once again: nil")
		}
		write(t, file, entry("one"))
		time.Sleep(time.Second)
		if err := tok.Refresh(); err != nil || !knows(tok, "one") {
			t.Errorf("Refresh: %v", err)
		}
		write(t, file, entry("two"))
		time.Sleep(time.Minute - 1)
		if err := tok.Refresh(); err != nil || !knows(tok, "one") {
			t.Errorf("Refresh within the interval: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if err := tok.Refresh(); err != nil || !knows(tok, "two") {
			t.Errorf("Refresh after the interval: %v", err)
		}
		write(t, file, []byte("garbage"))
		time.Sleep(time.Minute)
		if err := tok.Refresh(); err == nil || !knows(tok, "two") {
			t.Errorf("Refresh of a bad file: %v", err)
		}
		if err := tok.Refresh(); err == nil {
			t.Error("the finding was forgotten")
		}

		once := &Tokens{File: write(t, file, entry("one")), Interval: -1}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go func() {
			time.Sleep(time.Minute)
			write(t, file, entry("two"))
		}()
		if err := once.Run(ctx); err != nil {
			t.Error(err)
		}
		if once.Refresh(); !knows(once, "one") {
			t.Error("a negative interval reads again")
		}
		if once.Load(); !knows(once, "two") {
			t.Error("Load does not read with a negative interval")
		}
	})
}

func TestEmptyNames(t *testing.T) {
	for name, err := range map[string]error{
		"pair":   (&KeyPair{}).Load(),
		"pool":   (&Pool{}).Load(),
		"tokens": (&Tokens{}).Load(),
	} {
		if err == nil {
			t.Errorf("%s: zero value loads", name)
		}
	}
	if (&Pool{}).Roots() == nil {
		t.Error("Roots is nil, which means the host's roots")
	}
}

// TestAllFollow has each type follow its files by Refresh.
func TestAllFollow(t *testing.T) {
	ca := newCA(t, "ca")
	cert := issue(t, ca, tunneltest.CertOptions{CommonName: "a"})
	dir := t.TempDir()
	k := &KeyPair{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}
	p := &Pool{CAs: []CA{{File: filepath.Join(dir, "ca.crt")}}}
	tok := &Tokens{File: filepath.Join(dir, "tokens")}
	tunneltest.Bubble(t, func(t *testing.T) {
		for name, f := range map[string]interface {
			Ready() error
			Refresh() error
			Changed() <-chan struct{}
		}{"KeyPair": k, "Pool": p, "Tokens": tok} {
			changed := f.Changed()
			if f.Ready() == nil || f.Refresh() == nil {
				t.Errorf("%s: ready without files", name)
			}
			pairFor(t, dir, cert)
			write(t, p.CAs[0].File, ca.PEM())
			write(t, tok.File, []byte("[]"))
			time.Sleep(retryInterval)
			if err := errors.Join(f.Refresh(), f.Ready()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !isClosed(changed) || isClosed(f.Changed()) {
				t.Errorf("%s: Changed does not tell", name)
			}
			for _, file := range []string{k.KeyFile, p.CAs[0].File, tok.File} {
				os.Remove(file)
			}
		}
		if _, err := (&Pool{}).Identify(nil); err == nil || errors.Is(err, ErrUntrusted) {
			t.Errorf("a pool without files should say so: %v", err)
		}
		if _, err := (&Tokens{}).Lookup("x"); err == nil || errors.Is(err, ErrUnknownToken) {
			t.Errorf("tokens without a file should say so: %v", err)
		}
	})
}
