package interop

import (
	"os"
	"os/exec"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

// need returns the path of a program that a test cannot do without.
func need(t *testing.T, program, remedy string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		missing(t, program+" is not installed: "+remedy)
	}
	return path
}

// missing skips a test for want of something that the machine lacks, or fails
// it where nothing may be missing.
func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("RHIZOME_REQUIRE_ALL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
