package clitest

import (
	"errors"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Build compiles programs of this module, named by their import paths, and
// returns the folder with the binaries.
func Build(t testing.TB, packages ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	args := append([]string{"build", "-o", dir + string(filepath.Separator)}, packages...)
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return dir
}

// Process is a program in a process of its own.
type Process struct {
	*Output
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// StartProcess starts a binary, with its logs as JSON, until Kill, Stop or the
// end of the test.
func StartProcess(t testing.TB, binary string, args ...string) *Process {
	t.Helper()
	if runtime.GOOS == "windows" {
		binary += ".exe"
	}
	p := &Process{Output: NewOutput(t), t: t, done: make(chan struct{})}
	p.cmd = exec.Command(binary, append(args, "--log-format", "json")...)
	p.cmd.Stderr = p.Output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		defer p.Output.end()
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(p.Kill)
	return p
}

// Kill ends the process as kill -9 does, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to drain, and returns its exit code.
func (p *Process) Stop() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.t.Fatal("the process does not end after SIGTERM")
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		return exit.ExitCode()
	}
	return 0
}
