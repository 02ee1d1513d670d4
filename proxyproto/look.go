package proxyproto

// look searches the beginning of the data for a header that is refused. It
// holds no byte back: a client may say "P" and wait for the answer. That is
// no loss, since a part of a signature means nothing to anybody.
type look struct {
	on   bool
	seen []byte // what a signature may begin with
}

// inspect looks at bytes before anybody reads them.
func (c *Conn) inspect(b []byte) {
	if !c.look.on {
		return
	}
	c.look.seen = append(c.look.seen, b[:min(len(b), len(signatureV2)-len(c.look.seen))]...)
	switch signature(c.look.seen) {
	case matchNone:
		c.look = look{}
	case matchV1, matchV2:
		_ = c.fail(false, ErrRefused)
	}
}

// readLooking reads at least a signature, if it comes in one piece, into
// unread.
func (c *Conn) readLooking(b []byte) error {
	if len(b) == 0 {
		_, err := c.conn.Read(b)
		return err
	}
	c.unread = make([]byte, max(len(signatureV2), min(len(b), readSize)))
	n, err := c.conn.Read(c.unread)
	c.unread = c.unread[:n]
	c.inspect(c.unread)
	if e := c.failed.Load(); e != nil {
		return e
	}
	if n > 0 {
		err = nil
	}
	return err
}
