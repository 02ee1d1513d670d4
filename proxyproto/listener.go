package proxyproto

import "net"

// Listener is a listener whose connections are read with their PROXY headers.
// Its zero value is of no use: it needs a Listener. The Options may be left out
// to refuse all headers.
type Listener struct {
	net.Listener         // Accepts the connections; Close and Addr are its own.
	Options      Options // For each connection. Not to be changed while in use.
}

// Accept returns the next connection, as a *Conn. It never waits for a header:
// one silent peer costs nobody else anything.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return NewConn(c, &l.Options), nil
}
