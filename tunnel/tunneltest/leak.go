package tunneltest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long goroutines may take to end after the last test: one
// that was told to stop may still be on its way on a busy machine. (A variable only
// for our own test.)
var leakPatience = 5 * time.Second

// VerifyNoLeaks runs the tests of a package and fails it when one of their
// goroutines is still there afterwards. It does not return: it exits the process.
//
//	func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }
//
// After tests that passed it waits up to five seconds until no goroutine is left
// but those of before the tests and those of the packages testing, os/signal and
// runtime; else it prints the stacks of what is left and exits with 1. Idle
// connections of an http.Transport are goroutines too: close them in the test. Tests
// that failed exit with their own code and no check, since t.Fatal is allowed to leave
// things open.
func VerifyNoLeaks(m *testing.M) {
	before := make(map[string]bool)
	for _, g := range goroutines(allStacks()) {
		before[g.id] = true
	}
	code := m.Run()
	if code == 0 {
		code = reportLeaks(os.Stderr, before, allStacks, leakPatience)
	}
	os.Exit(code)
}

// reportLeaks is VerifyNoLeaks after the tests: it returns the exit code.
func reportLeaks(w io.Writer, before map[string]bool, stacks func() []byte, patience time.Duration) int {
	var left []goroutine
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if left = strays(goroutines(stacks()), before); len(left) == 0 {
			return 0
		}
		if time.Now().After(end) {
			break
		}
	}
	fmt.Fprintf(w, "FAIL: %d goroutines are left %v after the tests:\n", len(left), patience)
	for _, g := range left {
		fmt.Fprintf(w, "\n%s\n", g.stack)
	}
	return 1
}

// goroutine is one block of what runtime.Stack prints.
type goroutine struct {
	id    string
	stack string
}

func allStacks() []byte {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return buf[:n]
		}
	}
}

// goroutines splits a dump of all stacks. The runtime puts the caller first and an
// empty line between any two.
func goroutines(dump []byte) []goroutine {
	var gs []goroutine
	for _, block := range bytes.Split(bytes.TrimSpace(dump), []byte("\n\n")) {
		var g goroutine
		if _, err := fmt.Sscanf(string(block), "goroutine %s ", &g.id); err != nil {
			continue
		}
		g.stack = string(block)
		gs = append(gs, g)
	}
	return gs
}

// ours are functions that the test binary itself runs in goroutines of its own. A
// test that is still running (testing.tRunner) is a stray like any other.
var ours = []string{
	"os/signal.loop",
	"os/signal.signal_recv",
	"runtime.ensureSigM",
	"runtime/pprof.profileWriter",
	"runtime/trace.Start",
	"runtime.ReadTrace",
	"internal/fuzz.",
	"testing.runFuzzing",
	"testing.(*M).startAlarm",
}

// strays returns what is left without the caller (the first), the goroutines of
// before and those of the test binary.
func strays(gs []goroutine, before map[string]bool) []goroutine {
	var left []goroutine
next:
	for i, g := range gs {
		if i == 0 || before[g.id] {
			continue
		}
		for _, f := range ours {
			if strings.Contains(g.stack, "\n"+f) || strings.Contains(g.stack, "\ncreated by "+f) {
				continue next
			}
		}
		left = append(left, g)
	}
	return left
}
