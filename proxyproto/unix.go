package proxyproto

import (
	"bytes"
	"fmt"
	"net"
	"strings"
)

// unixPath is the size of a UNIX address on the wire, that of sun_path.
const unixPath = 108

// unixAddr completes what the codec made of a path on the wire. A NUL in front
// makes an abstract name of linux, which the codec takes for the end; package
// net writes it as @, and @ alone for no name.
func unixAddr(a net.Addr, path []byte) net.Addr {
	u, ok := a.(*net.UnixAddr)
	if !ok {
		return a
	}
	if path[0] == 0 {
		u.Name = "@" + string(bytes.TrimRight(path[1:], "\x00"))
	}
	if u.Name == "@" {
		u.Name = ""
	}
	return u
}

// wireUnix returns the address as the codec has to see it so that the wire says
// the same. The codec would cut a long name.
func wireUnix(a *net.UnixAddr) (*net.UnixAddr, error) {
	name := a.Name
	abstract := strings.HasPrefix(name, "@")
	if abstract {
		// Package net calls a socket without a name "@".
		name = strings.TrimSuffix("\x00"+name[1:], "\x00")
	}
	switch {
	case len(name) > unixPath:
		return nil, fmt.Errorf("%w: UNIX name of %d bytes, more than %d", ErrInvalid, len(name), unixPath)
	case !abstract && strings.Contains(name, "\x00") || abstract && a.Name != "@" && strings.HasSuffix(a.Name, "\x00"):
		return nil, fmt.Errorf("%w: NUL in UNIX name %q", ErrInvalid, a.Name)
	}
	return &net.UnixAddr{Name: name, Net: a.Net}, nil
}
