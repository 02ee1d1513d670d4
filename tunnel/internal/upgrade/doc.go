// Package upgrade opens a protocol of ours on a connection by an HTTP/1.1 Upgrade
// (RFC 9110 §7.8), at both ends:
//
//	p := upgrade.Protocol{Path: "/v1/session", Token: "rhizome/1", For: "agents"}
//
//	early, err := p.Request(conn, request, limits)    // the client
//
//	if err := p.Check(request); err != nil { … }      // the server, once it knows who asks
//	err := p.Switch(conn)
package upgrade
