//go:build !linux

package relay

import (
	"net"
	"time"
)

// acknowledged is known on linux only.
func (l *leg) acknowledged() (bytes uint64, age time.Duration, ok bool) { return 0, 0, false }

// owed is known on linux only.
func (l *leg) owed() (debt, bool) { return debt{}, false }

// watchable returns nil: only on linux a reset behind a FIN is known to wake
// whoever waits for bytes.
func (l *leg) watchable() net.Conn { return nil }

// waitSocketError is not reached.
func waitSocketError(net.Conn) error { return nil }
