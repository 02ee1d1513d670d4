package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	tunneltest.VerifyNoLeaks(m)
}

// The comparison works, with each contender. It is too short to tell anything.
func TestCompare(t *testing.T) {
	if _, err := exec.LookPath("/usr/sbin/haproxy"); err != nil {
		const why = "haproxy is not installed: apt-get install haproxy"
		if os.Getenv("RHIZOME_REQUIRE_ALL") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	var out, progress bytes.Buffer
	if err := compare(t.Context(), options{rounds: 1, time: 100 * time.Millisecond, idle: 50, settle: 100 * time.Millisecond}, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Logf("\n%s", &out)
	for _, want := range []struct {
		part string
		n    int
	}{
		{" entrypoint ", 11}, {" haproxy ", 11}, {" tcpproxy ", 11}, {" direct ", 3},
		{"connections  ", 7 + 3}, {"bulk, 1 stream ", 7}, {"bulk, 8 streams ", 7}, {"idle ", 15},
	} {
		if got := strings.Count(out.String(), want.part); got != want.n {
			t.Errorf("%d times %q, want %d", got, want.part, want.n)
		}
	}
}
