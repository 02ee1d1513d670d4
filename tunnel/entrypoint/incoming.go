package entrypoint

import (
	"net"
	"net/http"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// Incoming is a connection that has found its route and waits to be accepted.
type Incoming struct {
	// Info is what is known of it, without Info.Request: a head is larger than all
	// else that a connection needs.
	Info *Info

	conn     net.Conn // all that was read too early is in front again
	speaks   protocol
	accepted bool
	counter  relay.Counter
}

// protocol is in what a refusal is told.
type protocol int

const (
	speaksUnknown protocol = iota
	speaksTLS
	speaksHTTP
)

// Accept tells the client that it will be served, over CONNECT with 200, and
// returns its connection, from which comes all that it has sent for the
// backend. The caller owns the connection, also after an error of Accept has
// told that the client is gone. Accept is called once.
func (c *Incoming) Accept() (net.Conn, error) {
	c.accepted = true
	if c.Info.By != ByHeader {
		return c.conn, nil
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	err := (&connect.Response{Status: http.StatusOK, Phrase: "Connection established"}).Write(c.conn)
	_ = c.conn.SetWriteDeadline(time.Time{})
	return c.conn, err
}

// Counter is for the relay that carries the connection: what it counts stands
// in the route's counters.
func (c *Incoming) Counter() *relay.Counter { return &c.counter }
