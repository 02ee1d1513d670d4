package relay

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// acknowledged returns how many bytes the TCP peer at the bottom of the leg has
// acknowledged since its connection began, and how long ago the last ACK came.
// The count includes SYN and FIN; only its change means something.
func (l *leg) acknowledged() (bytes uint64, age time.Duration, ok bool) {
	raw := control(below(l.outer))
	if raw == nil {
		return 0, 0, false
	}
	err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		bytes = info.Bytes_acked
		age = time.Duration(info.Last_ack_recv) * time.Millisecond
		ok = true
	})
	return bytes, age, ok && err == nil
}

// owed returns what the TCP peer at the bottom of the leg owes us; ok is false if
// there is none.
func (l *leg) owed() (d debt, ok bool) {
	raw := control(below(l.outer))
	if raw == nil {
		return debt{}, false
	}
	err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			d, ok = debtOf(info), true
		}
	})
	return d, ok && err == nil
}

// debtOf judges what the kernel says.
//
// A closed window is no debt: nothing is in flight then, and each probe is
// answered, be it after two minutes, so that only three in a row without an
// answer count. That is also what a host does that has lost its route. A window
// that was closed over data in flight, which Linux never does to others, has the
// kernel send that data as probes and count no retransmission.
//
// Each segment carries an ACK, but a fast path of the kernel notes one that came
// with data and acknowledges nothing new only as data.
func debtOf(i *unix.TCPInfo) debt {
	return debt{
		owes:  i.Unacked > 0 && i.Retransmits > 0 || i.Notsent_bytes > 0 && i.Probes >= 3,
		heard: time.Duration(min(i.Last_ack_recv, i.Last_data_recv)) * time.Millisecond,
	}
}

// watchable returns the socket of the leg if it is safe to wait for it to become
// readable once the leg has yielded EOF, else nil. Waiting excludes readers. Below
// a stranger's wrapper somebody may still have to read, to be allowed to write.
func (l *leg) watchable() net.Conn {
	c := l.data
	if _, ok := c.(handshaker); ok {
		// Behind close_notify TLS has nothing more to say that matters.
		c = below(c)
	}
	if rawSocket(c) == nil {
		return nil
	}
	return c
}

// waitSocketError waits until the socket c, whose peer has sent its FIN, fails,
// and returns why; nil means that it was closed here.
func waitSocketError(c net.Conn) error {
	var failure error
	err := rawSocket(c).Read(func(fd uintptr) bool {
		// Reading would return 0 for ever: behind a FIN the kernel keeps the
		// error from recv(2). The runtime polls for edges, so the EOF itself
		// does not wake us again, while a reset does.
		failure = pendingError(c, fd)
		return failure != nil
	})
	if err != nil {
		// A deadline of the caller, if it was not Close: a leg that has ended
		// has no more reads that could be late.
		return nil
	}
	return failure
}
