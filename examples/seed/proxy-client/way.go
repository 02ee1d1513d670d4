package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"

	"github.com/rhizome-tunnel/rhizome/egress"
	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/certs"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// way is how connections leave this program.
type way struct {
	name  string       // for the log
	files cli.Files    // what it follows
	route func() route // as the files say now
}

// route is a way at one time.
type route struct {
	dial   connect.DialFunc
	direct bool // there is no proxy: the file says so
}

// proxyWay is the way of --proxy. Its dials are bounded by their context.
func proxyWay(o *options, log *slog.Logger) *way {
	d := *o.proxy
	d.Header, d.Timeout = o.header, -1
	w := &way{name: o.proxyName}
	if d.TLS != nil {
		var pool *certs.Pool
		if o.ca != "" {
			pool = &certs.Pool{CAs: []certs.CA{{File: o.ca}}, Logger: log}
			w.files = append(w.files, pool)
		}
		if o.pair != nil {
			o.pair.Logger = log
			w.files = append(w.files, o.pair)
		}
		name := o.serverName
		if name == "" {
			name = o.proxyHost
		}
		d.TLS = certs.ClientTLS(o.pair, pool, name)
	}
	w.route = func() route { return route{dial: d.DialContext} }
	return w
}

// egressWay is the way of --egress-config. A new file replaces the way of later
// dials; open connections stay.
func egressWay(file string, selection egress.Selection, log *slog.Logger) *way {
	var current atomic.Pointer[route]
	use := func(content []byte) error {
		r, err := egressRoute(content, selection, log)
		if err == nil {
			current.Store(r)
		}
		return err
	}
	return &way{
		name:  fmt.Sprintf("%s of %s", selection, file),
		files: cli.Files{&cli.File{Path: file, Use: use, Logger: log}},
		route: func() route { return *current.Load() }, // Load came first
	}
}

// egressRoute makes a route of a configuration, unless no dial can succeed by it.
func egressRoute(content []byte, selection egress.Selection, log *slog.Logger) (*route, error) {
	config, err := egress.Parse(content)
	if err != nil {
		return nil, err
	}
	selector := &egress.Selector{Config: config, Timeout: -1, Logger: log}
	dial, ok := selector.Lookup(selection)
	if !ok {
		return nil, fmt.Errorf("it has no egressSelection %q, so that everything would be dialled directly: if that is meant, say Direct there", selection)
	}
	// A dial that gets nowhere tells what is wrong with the entry and its files,
	// and whether there is a proxy: only then the error is a DialError.
	trial := &egress.Selector{Config: config, Dial: dialNowhere}
	_, err = trial.Dialer(selection)(context.Background(), "tcp", probeTarget)
	if errors.Is(err, connect.ErrConfig) {
		return nil, err
	}
	var through *egress.DialError
	return &route{dial: dial, direct: !errors.As(err, &through)}, nil
}

func dialNowhere(context.Context, string, string) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}
