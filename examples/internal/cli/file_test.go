package cli

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestFile follows a file through good, bad and missing content. What its log
// says, and how often, is what an operator learns.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	tunneltest.Bubble(t, func(t *testing.T) {
		var logs bytes.Buffer
		var used []string
		elsewhere := errors.New("another file is missing")
		f := &File{Path: path, Logger: slog.New(slog.NewTextHandler(&logs, nil)), Use: func(content []byte) error {
			switch s := string(content); {
			case strings.HasPrefix(s, "bad"):
				return errors.New(s)
			case s == "waits" && elsewhere != nil:
				return elsewhere
			default:
				used = append(used, s)
				return nil
			}
		}}
		if err := f.Ready(); err == nil || !strings.Contains(err.Error(), "not read yet") {
			t.Errorf("before the first look: %v", err)
		}
		if err := f.Load(); !errors.Is(err, os.ErrNotExist) || f.Ready() == nil {
			t.Errorf("no file: %v, then %v", err, f.Ready())
		}
		write := func(s string) {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("one")
		if err := errors.Join(f.Load(), f.Load(), f.Ready()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		wait.Go(func() {
			if err := f.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		said := 0
		step := func(content string, after time.Duration, want ...string) {
			t.Helper()
			if content == "" {
				os.Remove(path)
			} else {
				write(content)
			}
			time.Sleep(after)
			synctest.Wait()
			lines := strings.SplitAfter(logs.String()[said:], "\n")
			said = logs.Len()
			if len(lines)-1 != len(want) {
				t.Errorf("%q: the log says %q, want %q", content, lines, want)
				return
			}
			for i, text := range want {
				if !strings.Contains(lines[i], text) {
					t.Errorf("%q: the log says %q, want %q", content, lines[i], text)
				}
			}
			if err := f.Ready(); err != nil {
				t.Errorf("%q: %v", content, err)
			}
		}
		time.Sleep(time.Second) // looks are at 10 s, 20 s …
		step("one", 30*time.Second)
		step("two", 10*time.Second, "file loaded")
		step("bad", 30*time.Second, "what was in use stays in use")
		step("bad in another way", 30*time.Second, "in another way")
		step("two", 20*time.Second, "good again, unchanged")
		step("", 20*time.Second, "no such file")
		step("waits", 20*time.Second, "another file is missing")
		elsewhere = nil
		step("waits", 20*time.Second, "file loaded")
		step(strings.Repeat("x", certs.MaxFileSize+1), 20*time.Second, "has more than")
		cancel()
		wait.Wait()
		if got := strings.Join(used, " "); got != "one two waits" {
			t.Errorf("used %s", got)
		}
	})
}

// A file that is being written is not taken before two looks have seen the same.
func TestFileHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	tunneltest.Bubble(t, func(t *testing.T) {
		var used []string
		f := &File{Path: path, Use: func(content []byte) error {
			if len(content) == 0 {
				return errors.New("nothing in it")
			}
			used = append(used, string(content))
			return nil
		}}
		write := func(s string) {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Error(err)
			}
		}
		write("ha")
		later := time.AfterFunc(settle/2, func() { write("half") })
		defer later.Stop()
		start := time.Now()
		if err := f.Load(); err != nil || strings.Join(used, " ") != "half" {
			t.Fatalf("%v, used %q", err, used)
		}
		if took := time.Since(start); took != 2*settle {
			t.Errorf("it took %v", took)
		}
		if s := f.Status(); !s.Used.Equal(time.Now()) || s.Err != nil || !s.Since.IsZero() {
			t.Errorf("%+v", s)
		}
		// Back to what is in use, between two looks.
		write("")
		time.AfterFunc(settle/2, func() { write("half") })
		if err := f.Load(); err != nil || len(used) != 1 {
			t.Errorf("%v, used %q", err, used)
		}
		// Never the same twice.
		write("before")
		ctx, cancel := context.WithCancel(t.Context())
		var writer sync.WaitGroup
		writer.Go(func() {
			time.Sleep(settle / 2) // always between two looks
			for n := 0; ctx.Err() == nil; n++ {
				write(strings.Repeat("x", n%10+1))
				time.Sleep(settle)
			}
		})
		if err := f.Load(); err == nil || !strings.Contains(err.Error(), "changes while it is read") || len(used) != 1 {
			t.Errorf("%v, used %q", err, used)
		}
		cancel()
		writer.Wait()
		// The error has a time, that of its first look, and goes with it.
		write("")
		_ = f.Load()
		since := time.Now()
		time.Sleep(time.Minute)
		_ = f.Load()
		if s := f.Status(); s.Err == nil || !strings.Contains(s.Err.Error(), "nothing in it") || !s.Since.Equal(since) || f.Ready() != nil {
			t.Errorf("%+v, want since %v", s, since)
		}
		write("half")
		if err := f.Load(); err != nil || f.Status().Err != nil {
			t.Errorf("%v, %+v", err, f.Status())
		}
		// An end between two looks leaves all as it is.
		write("whole")
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(settle/2, cancel)
		if err := f.Run(ctx); err != nil || len(used) != 1 || f.Status().Err != nil {
			t.Errorf("%v, used %q, %+v", err, used, f.Status())
		}
	})
}

func TestFileWithoutLogger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	ctx, cancel := context.WithCancel(t.Context())
	f := &File{Path: path, Interval: -1, Use: func([]byte) error { return nil }}
	cancel()
	if err := f.Run(ctx); err != nil || !errors.Is(f.Ready(), os.ErrNotExist) {
		t.Errorf("got %v, then %v", err, f.Ready())
	}
	if err := os.WriteFile(path, []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.MaxBytes = 3
	if err := f.Load(); err == nil || !strings.Contains(err.Error(), "more than 3 bytes") {
		t.Errorf("a file that is too large: %v", err)
	}
	f.MaxBytes = 4
	if err := f.Load(); err != nil {
		t.Error(err)
	}
	if err := (&File{Path: t.TempDir()}).Load(); err == nil {
		t.Error("a folder is no error")
	}
}

// An error about each line of a large file does not fill the log.
func TestCapped(t *testing.T) {
	if got := capped(errors.New("short")); got != "short" {
		t.Errorf("%q", got)
	}
	if got := capped(errors.New(strings.Repeat("x", 1<<20))); len(got) > maxLogged+100 || !strings.HasSuffix(got, "… and 1040384 bytes more") {
		t.Errorf("%d bytes, which end with %q", len(got), got[len(got)-40:])
	}
}
