package connect

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// maxHost is the longest name of a host that DNS can carry, RFC 1035 §2.3.4.
const maxHost = 253

// ParseTarget splits the authority-form target of a CONNECT request, RFC 9112
// §3.2.3, strictly: a host and a port, IPv6 in brackets and without a zone,
// the port 1 to 65535 without leading zeros, a name of at most 253 bytes of
// letters, digits, hyphens and underscores in labels of at most 63 bytes, with
// or without the final dot. The host comes back without brackets. The error is
// an *Error with ErrRequest, status 400.
//
// A target that passes can stand in a request line as it is and means the same
// to every reader.
func ParseTarget(target string) (host string, port int, err error) {
	bad := func(why string) (string, int, error) {
		shown := target
		if at := strings.LastIndexByte(target, '@'); at >= 0 {
			shown = "…" + target[at:] // it may be a password
		}
		return "", 0, &Error{Reason: ErrRequest, Detail: "target " + quote(shown) + " " + why}
	}
	colon := strings.LastIndexByte(target, ':')
	if colon < 0 {
		return bad("has no port")
	}
	host = target[:colon]
	digits := target[colon+1:]
	n, perr := strconv.ParseUint(digits, 10, 16)
	if perr != nil || n == 0 || digits[0] == '0' || digits[0] == '+' {
		return bad("has no port from 1 to 65535")
	}
	switch {
	case host == "":
		return bad("has no host")
	case host[0] == '[':
		if host[len(host)-1] != ']' {
			return bad("has an open bracket")
		}
		host = host[1 : len(host)-1]
		ip, ierr := netip.ParseAddr(host)
		if ierr != nil || !ip.Is6() {
			return bad("has no IPv6 address in the brackets")
		}
		if ip.Zone() != "" {
			return bad("has a zone, which means nothing on another host")
		}
	case strings.IndexByte(host, ':') >= 0:
		return bad("has colons in the host; IPv6 stands in brackets")
	case !validName(host):
		return bad("has no valid host name")
	}
	return host, int(n), nil
}

// validName reports whether s can be the name of a host or an IPv4 address.
func validName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) == 0 || len(s) > maxHost {
		return false
	}
	label := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '.':
			if label == 0 {
				return false
			}
			label = 0
			continue
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return label > 0
}

// joinTarget is the inverse of ParseTarget.
func joinTarget(host string, port int) string {
	return net.JoinHostPort(host, strconv.Itoa(port))
}
