package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/rhizome-tunnel/rhizome/proxyproto"
)

// CheckAddr reports why s is not an address to listen on or to dial: it must be
// host:port, with any host.
func CheckAddr(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("want host:port: %w", err)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return fmt.Errorf("want host:port: port %q", port)
	}
	return nil
}

// CheckAddrFlag is CheckAddr for the value of a flag; empty is good.
func CheckAddrFlag(flag, s string) error {
	if s == "" {
		return nil
	}
	if err := CheckAddr(s); err != nil {
		return fmt.Errorf("--%s %q: %w", flag, s, err)
	}
	return nil
}

// Listeners are open listeners that must be closed together until somebody
// owns them.
type Listeners []net.Listener

// Close closes all. Closing one that is closed already does no harm.
func (ls *Listeners) Close() {
	for _, l := range *ls {
		_ = l.Close()
	}
}

// TCP opens a listener, with TLS if config is not nil.
func (ls *Listeners) TCP(addr string, config *tls.Config) (net.Listener, error) {
	return ls.TCPBehind(nil, addr, config)
}

// TCPBehind is TCP behind load balancers: connections from their addresses must
// begin with a PROXY header, which names the client.
func (ls *Listeners) TCPBehind(balancers []netip.Prefix, addr string, config *tls.Config) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if len(balancers) > 0 {
		var o proxyproto.Options
		for _, from := range balancers {
			o.Rules = append(o.Rules, proxyproto.Rule{From: from, Policy: proxyproto.Require})
		}
		l = &proxyproto.Listener{Listener: l, Options: o}
	}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	*ls = append(*ls, l)
	return l, nil
}

// SocketMode is the permission of Unix sockets: owner and group.
const SocketMode = 0o660

// Unix opens a Unix socket with mode SocketMode, which is removed when the
// listener is closed. A socket that is there already is replaced if nobody
// listens on it, as after a kill; any other file is left alone.
func (ls *Listeners) Unix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, SocketMode); err != nil {
		_ = l.Close()
		return nil, err
	}
	*ls = append(*ls, l)
	return l, nil
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there already and is no socket", path)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	if !isRefused(err) {
		return fmt.Errorf("%s is there already: %w", path, err)
	}
	return os.Remove(path)
}
