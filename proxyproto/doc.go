// Package proxyproto speaks the PROXY protocol, versions 1 and 2, at both ends:
// it believes the right peers on the way in, and tells the truth on the way
// out.
//
//	l := &proxyproto.Listener{Listener: tcp, Options: proxyproto.Options{
//		Rules: []proxyproto.Rule{{From: netip.MustParsePrefix("10.0.0.0/8"), Policy: proxyproto.Require}},
//	}}
//	conn, err := l.Accept()              // never waits for a header
//	conn.RemoteAddr()                    // the client, whatever stands between
//
//	d := &proxyproto.Dialer{Header: func(context.Context, net.Conn) (*proxyproto.Header, error) {
//		return proxyproto.HeaderOf(conn), nil
//	}}
//	backend, err := d.DialContext(ctx, "tcp", "10.0.0.1:443") // knows the client too
//
// Parsing and formatting of a header are those of
// [github.com/pires/go-proxyproto]; trust, deadlines, stacking and the
// connection around it are here.
//
// # Who is believed
//
// A header may name any client, so it counts only if the peer at the other end
// of the wire may send one: [Options.Rules] go by the address of the TCP peer,
// never by one that a header claims. There are three policies:
//
//	           header              no header           silence
//	Refuse     ErrRefused          data                data is awaited, for ever
//	Require    names the client    ErrNoHeader         timeout
//	Accept     names the client    data                timeout
//
// The zero value refuses. Refuse costs nobody anything: no call waits for a
// header that would not count, and a Read passes on what begins like one until
// it is one. Accept has to wait for the client's first bytes, and with it
// whoever can reach the listener from that prefix can name a client, or not, as
// he likes: prefer Require.
//
// # Two headers
//
// A shared entrypoint behind a load balancer gets two headers on a
// connection:
//
//	client ──► apiserver-proxy ── inner ──► load balancer ── outer, inner ──► entrypoint
//
//	outer   from a trusted peer only       Conn.Header    RemoteAddr, LocalAddr
//	inner   from anyone, Options.Inner     Conn.Inner     nothing
//
// The inner header says where to. Its destination is a key to look up, never
// an address to dial; its source was written by whoever wanted to, and is
// neither for access control nor for a log; its TLVs are dropped. A peer that may
// not send an outer header sends the inner one alone: the first of two counts as
// that. What follows behind the last header is data, also if it looks like
// another one, and comes out of Read untouched.
//
// # Headers
//
// A header may come in any pieces. A line of version 1 has at most 107 bytes,
// and version 2 at most 4096 behind the first 16, and in them at most 64 TLVs.
// What is longer, truncated, against the grammar, has TLVs that do not fit, or a
// CRC32C that is wrong, is [ErrMalformed]. Bad TLVs of LOCAL, which the
// specification has us skip, are left out instead. LOCAL and UNKNOWN leave the
// addresses of the connection as they are, whatever else the header holds; they
// are health checks mostly. PROXY with no address family, which the specification
// leaves to the receiver, is malformed. So are addresses of datagrams (UDP) for a
// [Conn], whose users expect those of a stream; [ReadHeader] returns them. IPv4
// addresses within IPv6 become IPv4, in headers as well as in rules.
//
// # Reading
//
//	Accept, NewConn                  read nothing
//	RemoteAddr, LocalAddr, Header    wait for the outer header, if one can count
//	ReadHeader, Inner, Read          wait for all that is looked for
//	Write, CloseWrite, Close         wait for nothing
//
// The wait has a bound of its own, [Options.Timeout], and heeds the caller's
// read deadline too, which is in force again behind the headers. Each error is
// a [*HeaderError], stays, and is every later Read's; its owner closes the
// connection.
//
// Half-close and reset go through to the connection below, and
// [github.com/rhizome-tunnel/rhizome/tunnel/relay.Relay] splices a Conn once
// its headers are read: call ReadHeader before, which is also the moment to
// look at the error.
//
// # Goroutines
//
// None. Headers are read in the goroutine of the call that needs them.
//
// # What it does not do
//
// No headers on datagrams: no UDP, no QUIC. No headers in the middle of a
// connection. No opinion on what a TLV says: the names, certificates and ids in
// it are claims of the peer. A connection that failed is not closed, and
// nothing is logged.
package proxyproto
