//go:build linux

package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// run is a program on a host.
type run struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Process is a program that was started on a host.
type Process struct {
	host *Host
	run  *run
}

// Start starts cmd on the host. It ends with Stop, Kill, Lab.Close, or with this
// process.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("%s on %s: %w", cmd.Path, h.Name, err)
	}
	r := &run{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = cmd.Wait()
	}()
	h.mu.Lock()
	h.runs = append(h.runs, r)
	h.mu.Unlock()
	return &Process{h, r}, nil
}

// killAll ends what runs on the host.
func (h *Host) killAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.runs {
		_ = r.cmd.Process.Kill()
		<-r.done
	}
	h.runs = nil
}

// Kill ends the program as kill -9 does, and waits for it.
func (p *Process) Kill() {
	_ = p.run.cmd.Process.Kill()
	<-p.run.done
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.run.done }

// Stop sends SIGTERM and returns how the program ended, at the latest after the
// given time, when it is killed.
func (p *Process) Stop(most time.Duration) error {
	if err := p.run.cmd.Process.Signal(syscall.SIGTERM); err != nil && err != os.ErrProcessDone {
		return err
	}
	select {
	case <-p.run.done:
		return p.run.err
	case <-time.After(most):
		select {
		case <-p.run.done: // by itself, and most is short
			return p.run.err
		default:
		}
		p.Kill()
		return fmt.Errorf("%s on %s did not end within %v of SIGTERM", p.run.cmd.Path, p.host.Name, most)
	}
}

// Wait waits until the program has ended and returns how.
func (p *Process) Wait() error {
	<-p.run.done
	return p.run.err
}
