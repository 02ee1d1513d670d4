package tunneltest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A dump as the runtime prints it: the caller, a stray, and two of the test binary.
const dump = `goroutine 1 [running]:
example.com/x.TestMain(0x1)
	/x/main_test.go:8 +0x1d

goroutine 34 [chan receive, 2 minutes]:
example.com/x.(*Agent).run(0xc000012345)
	/x/agent.go:12 +0x1d
created by example.com/x.(*Agent).Start in goroutine 33
	/x/agent.go:10 +0x1d

goroutine 35 [syscall]:
os/signal.signal_recv()
	/go/src/runtime/sigqueue.go:152 +0x29
os/signal.loop()
	/go/src/os/signal/signal_unix.go:23 +0x13
created by os/signal.Notify.func1.1 in goroutine 19
	/go/src/os/signal/signal.go:151 +0x1f

goroutine 36 [select]:
internal/fuzz.CoordinateFuzzing.func1()
	/go/src/internal/fuzz/fuzz.go:1 +0x1
created by internal/fuzz.CoordinateFuzzing in goroutine 7
	/go/src/internal/fuzz/fuzz.go:1 +0x1
`

func TestStrays(t *testing.T) {
	gs := goroutines([]byte(dump))
	if len(gs) != 4 {
		t.Fatalf("%d goroutines, want 4", len(gs))
	}
	left := strays(gs, nil)
	if len(left) != 1 || left[0].id != "34" || !strings.Contains(left[0].stack, "(*Agent).run") {
		t.Errorf("strays: %+v, want goroutine 34", left)
	}
	if left := strays(gs, map[string]bool{"34": true}); len(left) != 0 {
		t.Errorf("strays: %+v, want none: it was there before", left)
	}
	if gs := goroutines([]byte("what is this?\n\nand this?")); len(gs) != 0 {
		t.Errorf("goroutines of nonsense: %+v", gs)
	}
}

func TestReportLeaks(t *testing.T) {
	var out bytes.Buffer
	if code := reportLeaks(&out, nil, func() []byte { return []byte(dump) }, 0); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if s := out.String(); !strings.HasPrefix(s, "FAIL: 1 goroutines") || !strings.Contains(s, "/x/agent.go:12") || strings.Contains(s, "os/signal") {
		t.Errorf("the report:\n%s", s)
	}

	// One that ends in time is no leak.
	out.Reset()
	polls := 0
	code := reportLeaks(&out, nil, func() []byte {
		if polls++; polls > 3 {
			return []byte("goroutine 1 [running]:\n")
		}
		return []byte(dump)
	}, time.Minute)
	if code != 0 || out.Len() != 0 {
		t.Errorf("exit code %d, %q; want 0 and silence", code, out.String())
	}
}

// TestVerifyNoLeaks runs this test binary again with a test that leaks.
func TestVerifyNoLeaks(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestLeaker$")
	cmd.Env = append(os.Environ(), leakEnv+"=1")
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Fatalf("exit code %d (%v), want 1\n%s", code, err, out)
	}
	if s := string(out); !strings.Contains(s, "PASS") || !strings.Contains(s, " goroutines are left") || !strings.Contains(s, "leakForever") {
		t.Errorf("the report:\n%s", s)
	}
}

func TestLeaker(t *testing.T) {
	if os.Getenv(leakEnv) == "" {
		t.Skip("leaks on purpose, for TestVerifyNoLeaks only")
	}
	started := make(chan struct{})
	go leakForever(started)
	<-started
}

func leakForever(started chan struct{}) {
	close(started)
	select {}
}
