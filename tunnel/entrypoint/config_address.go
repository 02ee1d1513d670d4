package entrypoint

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// checkBackends wants at least one, and each once.
func checkBackends(backends []string) error {
	if len(backends) == 0 {
		return errors.New("it has no backends")
	}
	var errs []error
	seen := make(map[string]bool)
	for _, b := range backends {
		path, isUnix := strings.CutPrefix(b, "unix:")
		err := checkBackendAddress(b)
		switch {
		case isUnix && path != "" && path != "@" && strings.ContainsAny(path[:1], "/@"):
			err = nil
		case isUnix:
			err = errors.New("want unix:/PATH or unix:@NAME")
		}
		if seen[b] {
			err = errors.Join(err, errors.New("it is there twice"))
		}
		seen[b] = true
		if err != nil {
			errs = append(errs, within(fmt.Sprintf("backend %q", b), err))
		}
	}
	return errors.Join(errs...)
}

func checkBackendAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	switch {
	case err != nil || port != "0" && host != "":
		return checkAddress(s)
	case host == "":
		return errors.Join(errors.New("no host"), checkAddress(s))
	}
	return errors.New("port 0")
}

// checkAddress wants host:port with a number.
func checkAddress(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("want host:port: %w", err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("want host:port: port %q", port)
	}
	return nil
}

// parsePrefixes reads prefixes and single addresses.
func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	var errs []error
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err == nil {
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		switch {
		case err != nil:
			err = fmt.Errorf("prefix %q: want IP or IP/BITS", s)
		case p.Addr().Zone() != "" || p.Addr().Is4In6():
			err = fmt.Errorf("prefix %q: no zone, and IPv4 as such", s)
		case p != p.Masked():
			err = fmt.Errorf("prefix %q: there are bits behind the prefix, want %s", s, p.Masked())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, errors.Join(errs...)
}
