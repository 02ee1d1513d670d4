//go:build linux

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

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// The comparison works, with each contender. It is too short to tell anything.
func TestCompare(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs network namespaces: run it as root")
	}
	for _, program := range []string{"iperf3", "ping", "openvpn"} {
		if _, err := exec.LookPath(program); err != nil && os.Getenv("RHIZOME_REQUIRE_ALL") != "1" {
			t.Skip(program + " is not installed: apt-get install iperf3 iputils-ping openvpn")
		}
	}
	var out, progress bytes.Buffer
	if err := compare(t.Context(), options{rounds: 1, time: time.Second}, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Logf("\n%s", &out)
	for _, c := range contenders {
		if got := strings.Count(out.String(), " "+c.name+" "); got != 3 {
			t.Errorf("%d figures of %s, want 3", got, c.name)
		}
	}
}
