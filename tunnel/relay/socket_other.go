//go:build !unix

package relay

import (
	"net"
	"syscall"
)

// rawSocket returns nil: the descriptor cannot be used to wait for bytes
// without a buffer, so that sockets are treated like any other connection.
func rawSocket(net.Conn) syscall.RawConn { return nil }

// control returns nil: nothing is asked of descriptors here.
func control(net.Conn) syscall.RawConn { return nil }

// copySocket is not reached without a raw socket.
func (d *direction) copySocket() error { return d.copyBlind() }

// failure is known only of a connection that tells by itself.
func (l *leg) failure() error {
	if w, ok := l.data.(ResetWaiter); ok {
		return w.WaitReset()
	}
	return nil
}

// waitWritable cannot be done here.
func waitWritable(net.Conn) {}
