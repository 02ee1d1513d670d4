package guard

import (
	"io"
	"net"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const (
	// LingerTimeout is how long a refused peer gets to read its answer.
	LingerTimeout = time.Second
	// lingerBytes is how much of what a refused peer still sends is read away.
	lingerBytes = 256 << 10
)

// Linger gives the peer of c time to read what was written last: it half-closes
// c and reads away what still comes, because a close with bytes unread resets
// the connection under the answer. The caller closes c.
func Linger(c net.Conn) {
	if relay.CloseWrite(c) != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(LingerTimeout))
	_, _ = io.CopyN(io.Discard, c, lingerBytes)
}
