// Package connect speaks HTTP CONNECT at both ends: a client that dials through
// a proxy, and the proxy. Go has neither as a dial function or a handler.
//
//	d := &connect.Dialer{Address: "proxy:9443", TLS: config, User: url.UserPassword("u", "p")}
//	conn, err := d.DialContext(ctx, "tcp", "10.0.0.7:10250")
//	if errors.Is(err, connect.ErrRefused) { … }      // the target refused, and the proxy said so
//
//	h := &connect.Handler{Dial: dial, Allow: allow}  // any dial function becomes a proxy
//	err := h.Serve(ctx, listener)
//
// # Dialing
//
// [Dialer] reaches a proxy over TCP, TLS or a Unix socket and asks for a
// tunnel. Its DialContext has the shape of every dial function, so that it goes
// where one goes: into [net/http.Transport.DialContext], into a tunnel's agent,
// and into the Forward field of another Dialer, which chains two proxies:
//
//	near := &connect.Dialer{Address: "proxy.corp:3128"}
//	far := &connect.Dialer{Address: "entrypoint:8132", TLS: config, Forward: near.DialContext}
//
// [FromURL] makes one from a URL and fits
// [golang.org/x/net/proxy.RegisterDialerType]; [FromEnvironment] obeys
// HTTPS_PROXY and NO_PROXY.
//
// The context and [Dialer.Timeout] govern all of the dial, the proxy's answer
// included, and nothing after it. Whatever the target said together with that
// answer is not lost, and the conn half-closes.
//
// # Serving
//
// [Handler] makes a proxy of a dial function. It answers 200 only after the
// target accepted; it cancels the dial when the client goes away meanwhile; it
// keeps what the client sends early; it relays with half-close and reset (see
// package relay); and it tells in words and by type why there is no tunnel.
//
//	client           Handler                       target
//	  │─ CONNECT ──────►│ ReadRequest  ≤ 10 s, 64 KiB │
//	  │                 │ Allow        403            │
//	  │─ early bytes ──►│ Dial         ≤ 20 s ───────►│
//	  │   (≤ 16 KiB)    │                             │
//	  │◄─ 200 ──────────│◄──────────── accepted ──────│
//	  │◄════════════ relay, until both ends ═════════►│
//
// A client that closes or half-closes before the 200, having sent nothing
// behind its head, counts as gone. One that sent something first has
// half-closed, and the target learns of that.
//
// Clients such as Go's and Prometheus use CONNECT for https targets only and
// send an absolute-form request, RFC 9112 §3.2.2, for http targets. Handler
// serves these too, through net/http and with the same Dial, Allow and errors.
//
// [Handler.Serve] takes a listener, [Handler.ServeConn] one conn,
// [Handler.ServeRequest] a conn whose head was read already, and
// [Handler.ServeHTTP] is an adapter for an [net/http.Server], with limits.
//
// # Grammar
//
// [ReadRequest] and [ReadResponse] read one head from a bare conn, with one
// deadline and one size for all of it, and hand out what came behind it. They
// keep no buffer, so that a plain socket stays one that can be spliced.
// ReadRequest refuses what two readers could understand in two ways. The target
// comes from the request line: kube-apiserver sends Host: 127.0.0.1 with every
// request.
//
// # Errors
//
// Every refusal is an [*Error] with a [Reason], a proxy error type of RFC 9209.
// On the wire it is a status code, a Proxy-Status field, and a reason phrase
// that repeats it for the many clients that show their user nothing else:
//
//	HTTP/1.1 502 connection_refused: dial tcp 10.0.0.7:10250: connect: connection refused
//	Proxy-Status: rhizome; error=connection_refused; details="dial tcp 10.0.0.7:10250: connect: connection refused"
//
// [Classify] makes an Error of what a dial function returns, the Dialer makes
// one of an answer, so that the reason survives any number of proxies:
//
//	reason                     status  also errors.Is
//	http_request_error            400  (404, 408, 431, 505)
//	http_request_denied           403
//	destination_ip_prohibited     403
//	proxy_authentication_required 407  (ours; not in RFC 9209)
//	connection_limit_reached      429
//	proxy_internal_error          500
//	proxy_configuration_error     500
//	connection_refused            502  syscall.ECONNREFUSED
//	dns_error                     502
//	destination_ip_unroutable     502
//	connection_terminated         502
//	http_protocol_error           502
//	tls_protocol_error            502
//	destination_unavailable       503
//	connection_timeout            504  os.ErrDeadlineExceeded
//	dns_timeout                   504  os.ErrDeadlineExceeded
//
// [Error.Answered] tells a refusal by the proxy from a proxy that could not be
// reached. Credentials never stand in an error.
//
// # Goroutines
//
// Whoever blocks owns them. There are none but these:
//
//	Dialer.DialContext    none that outlives it; crypto/tls has one during a handshake
//	Handler.Serve         one per conn; all are gone when it returns
//	Handler.ServeConn     one that watches the client while Dial runs, then the relay's
//	absolute-form         net/http's for one client conn, and two per target conn
//
// They end with the context that was given to Serve, ServeConn or ServeRequest,
// which resets the conns. A forward dialer of x/net/proxy without a
// DialContext is the exception, see [FromURL].
//
// # What it does not do
//
// No HTTP/2 or HTTP/3 to or from a client, and no CONNECT-UDP. No caching. No
// answers to challenges of a proxy (Digest, NTLM, Negotiate): give the
// credentials beforehand. No HTTP_PROXY, which is for requests that a proxy
// reads. No resolving of names in the Dialer: the proxy does that. No opinion
// on what may be dialled: a Handler without Allow is an open proxy.
package connect
