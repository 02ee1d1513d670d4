package upgrade

import (
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// Protocol is what a connection is upgraded to.
type Protocol struct {
	// Path is what is asked for.
	Path string
	// Token names the protocol and its version in the Upgrade field.
	Token string
	// For says in refusals who comes here: "agents".
	For string
}

// Is reports whether a request may be for an upgrade to any protocol of ours, and
// not for a proxy.
func Is(r *connect.Request) bool {
	return r.Method == http.MethodGet && strings.HasPrefix(r.Target, "/")
}

// Check refuses a request that does not ask for this protocol with 404, 426 or
// 505.
func (p Protocol) Check(r *connect.Request) error {
	if path, _, _ := strings.Cut(r.Target, "?"); path != p.Path {
		return &connect.Error{Reason: connect.ErrRequest, Status: http.StatusNotFound,
			Detail: "there is nothing here but " + p.Path + " for " + p.For}
	}
	if !HasToken(r.Header, "Connection", "upgrade") || !HasToken(r.Header, "Upgrade", p.Token) {
		return &connect.Error{Reason: connect.ErrRequest, Status: http.StatusUpgradeRequired,
			Detail: "this server speaks " + p.Token, Header: http.Header{"Upgrade": {p.Token}, "Connection": {"Upgrade"}}}
	}
	if r.Proto != "HTTP/1.1" {
		return &connect.Error{Reason: connect.ErrRequest, Status: http.StatusHTTPVersionNotSupported, Detail: "an upgrade needs HTTP/1.1"}
	}
	return nil
}

// Switch answers 101: the protocol follows.
func (p Protocol) Switch(c net.Conn) error {
	return (&connect.Response{Status: http.StatusSwitchingProtocols, Header: http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {p.Token},
	}}).Write(c)
}

// Request asks for the protocol with r, to which it adds what makes an upgrade of
// it, and reads the answer. Early is what came with it. A refusal is a
// *connect.Error.
func (p Protocol) Request(c net.Conn, r *connect.Request, limits *connect.HeadLimits) (early []byte, err error) {
	r.Method, r.Target = http.MethodGet, p.Path
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", p.Token)
	if err := r.Write(c); err != nil {
		return nil, err
	}
	res, err := connect.ReadResponse(c, limits)
	if err != nil {
		return nil, err
	}
	switch {
	case res.Status == http.StatusSwitchingProtocols && HasToken(res.Header, "Upgrade", p.Token):
		return res.Early, nil
	case res.Status/100 <= 3:
		return nil, fmt.Errorf("tunnel: %s is no rhizome server: it answered %d %s", r.Host, res.Status, res.Phrase)
	}
	return nil, res.Refusal(r.Host, "")
}

// HasToken reports whether a comma-separated header field has a token.
func HasToken(h http.Header, field, token string) bool {
	for _, line := range h.Values(field) {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}
