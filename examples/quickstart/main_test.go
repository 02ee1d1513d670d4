package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// TestOutput compares all that is printed, with what differs from run to run
// left out.
func TestOutput(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out, logs bytes.Buffer
	start := time.Now()
	if err := run(context.Background(), nil, &out, &logs); err != nil {
		t.Fatal(err)
	}
	t.Logf("it took %v", time.Since(start))
	got := out.String()
	for _, c := range []struct{ re, with string }{
		{`/\S*rhizome-quickstart-[0-9]+`, "DIR"},
		{`(127\.0\.0\.1|node-1\.shoot--[a-z]+\.internal):[0-9]+`, "$1:PORT"},
		{`[0-9.]+ ms`, "N ms"},
		{`[0-9]+ bytes to the agent and [0-9]+ back`, "N bytes to the agent and N back"},
	} {
		got = regexp.MustCompile(c.re).ReplaceAllString(got, c.with)
	}
	golden, err := os.ReadFile(filepath.Join("testdata", "output.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if got != string(golden) {
		t.Errorf("it printed\n%s\nand testdata/output.txt has\n%s", got, golden)
	}
	for line := range strings.Lines(got) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 100 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if logs.Len() > 0 {
		t.Errorf("standard error: %s", &logs)
	}
}

// TestInterrupted ends it before it begins to be interesting, and after each
// step that another one needs.
func TestInterrupted(t *testing.T) {
	for _, after := range []string{"A control plane", "entrypoint ", "agents ", "egress ", "request ", "closed port ", "forbidden "} {
		ctx, cancel := context.WithCancelCause(context.Background())
		stop := errors.New("enough")
		out := writerFunc(func(b []byte) {
			if bytes.Contains(b, []byte(after)) {
				cancel(stop)
			}
		})
		if err := run(ctx, nil, out, &bytes.Buffer{}); !errors.Is(err, stop) {
			t.Errorf("after %q: got %v", after, err)
		}
		cancel(nil)
	}
}

type writerFunc func(b []byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// TestNoDisk is without a place for the files.
func TestNoDisk(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	t.Setenv("TMP", os.Getenv("TMPDIR")) // windows
	if err := run(context.Background(), nil, &bytes.Buffer{}, &bytes.Buffer{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, &out, &out); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "takes no flags") {
		t.Errorf("%v %s", err, &out)
	}
}
