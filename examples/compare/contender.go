package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// serverName is the name that all clients ask for.
const serverName = "api.shoot.dev.example.com"

// contender is what can stand between the load and the backend.
type contender struct {
	name string
	// start starts a new process. It is nil where nothing stands between.
	start func(ctx context.Context, profile string) (p *process, stop func(), err error)
	// address is where to dial if start is nil.
	address string
	// descriptors is how many of them an idle connection takes.
	descriptors int
}

// process is a contender that runs.
type process struct {
	pid     int
	address string
}

// contendersFor returns all contenders, or the only one that is asked for.
func contendersFor(o options, backend string, progress io.Writer) ([]*contender, error) {
	role := func(name string) func(context.Context, string) (*process, func(), error) {
		return func(ctx context.Context, profile string) (*process, func(), error) {
			env := []string{backendVariable + "=" + backend}
			if name == "entrypoint" && profile != "" {
				env = append(env, profileVariable+"="+profile)
			}
			return startRole(ctx, name, env...)
		}
	}
	all := []*contender{
		{name: ours, start: role("entrypoint"), descriptors: 3}, // it takes two, and keeps some for others
		{name: "direct", address: backend},
		{name: "tcpproxy", start: role("tcpproxy"), descriptors: 6}, // io.Copy keeps a pipe while it waits
	}
	if path, err := exec.LookPath("/usr/sbin/haproxy"); err == nil {
		all = append(all, &contender{name: "haproxy", descriptors: 2, start: func(ctx context.Context, _ string) (*process, func(), error) {
			return startHAProxy(ctx, path, backend)
		}})
	} else {
		fmt.Fprintln(progress, "haproxy is missing: apt-get install haproxy")
	}
	if o.only == "" {
		return all, nil
	}
	for _, c := range all {
		if c.name == o.only {
			return []*contender{c}, nil
		}
	}
	return nil, fmt.Errorf("no contender %q", o.only)
}

// ours is what the others are compared with.
const ours = "entrypoint"

func names(contenders []*contender) (list []string) {
	for _, c := range contenders {
		list = append(list, c.name)
	}
	return list
}

// startRole starts this program in another role.
func startRole(ctx context.Context, role string, env ...string) (*process, func(), error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), append(env, roleVariable+"="+role, listenVariable+"="+address)...)
	// A role ends with its standard input, so that none is left when this
	// process is killed.
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	return run(ctx, cmd, address, func() { in.Close() })
}

func startHAProxy(ctx context.Context, path, backend string) (*process, func(), error) {
	address, err := freeAddress()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "compare")
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(dir, "haproxy.cfg")
	err = os.WriteFile(file, fmt.Appendf(nil, haproxyConfig, runtime.GOMAXPROCS(0), address, serverName, backend), 0o600)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, path, "-db", "-q", "-f", file)
	p, stop, err := run(ctx, cmd, address, func() { _ = cmd.Process.Kill() })
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, nil, err
	}
	return p, func() { stop(); _ = os.RemoveAll(dir) }, nil
}

// Pipes count as descriptors when HAProxy checks whether it has enough.
const haproxyConfig = `global
  nbthread %d
  maxconn 9950
  maxpipes 32
defaults
  mode tcp
  option splice-request
  option splice-response
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend front
  bind %s
  tcp-request inspect-delay 10s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend shoot if { req.ssl_sni -i %s }
backend shoot
  server backend %s
`

// run starts a program and waits until it takes connections.
func run(ctx context.Context, cmd *exec.Cmd, address string, end func()) (*process, func(), error) {
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	stop := func() {
		end()
		<-gone
	}
	for {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return &process{cmd.Process.Pid, address}, stop, nil
		}
		select {
		case err := <-gone:
			return nil, nil, errors.Join(fmt.Errorf("%s has ended", cmd.Path), err)
		case <-ctx.Done():
			stop()
			return nil, nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// freeAddress is an address on loopback where nothing listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
