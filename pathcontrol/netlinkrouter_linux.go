package pathcontrol

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// routeBatch is the most bytes of requests in one message to the kernel.
	// Sockets may send 208 KiB at once unless told otherwise.
	routeBatch = 128 << 10
	// routeBuffer is how much the kernel may hold for us: of news, and of
	// refusals of one message.
	routeBuffer = 4 << 20
	// routeAnswer bounds the wait for the kernel, which answers at once.
	routeAnswer = 10 * time.Second
)

// A routeKernel is the kernel of one network namespace.
type routeKernel struct {
	mu     sync.Mutex
	talk   *nl.NetlinkSocket // requests, one at a time
	port   uint32            // its number: the sender of requests
	seq    uint32
	events *nl.NetlinkSocket
	locks  []net.PacketConn
	done   chan struct{} // closed by close
}

// openRouteKernel opens the namespace of this thread and takes the lock, if one is
// named.
func openRouteKernel(lock string) (*routeKernel, error) {
	k := &routeKernel{done: make(chan struct{})}
	if lock != "" {
		if _, err := k.lock(lock); err != nil {
			return nil, err
		}
	}
	err := k.open()
	if err != nil {
		k.close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return k, nil
}

func (k *routeKernel) open() (err error) {
	if k.talk, err = nl.Subscribe(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if k.port, err = k.talk.GetPid(); err != nil {
		return err
	}
	answer := unix.NsecToTimeval(routeAnswer.Nanoseconds())
	_ = k.talk.SetReceiveTimeout(&answer) // fails never
	// What older kernels do not know they do without: refusals in words, short
	// refusals, and lists of one table only.
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		_ = unix.SetsockoptInt(k.talk.GetFd(), unix.SOL_NETLINK, option, 1)
	}
	k.events, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return err
	}
	for _, s := range []*nl.NetlinkSocket{k.talk, k.events} {
		if s.SetReceiveBufferSize(routeBuffer, true) != nil {
			_ = s.SetReceiveBufferSize(routeBuffer, false) // as much as anybody may have
		}
	}
	return nil
}

// lock makes this process the only one of the namespace that has the name, until
// it dies, calls release or closes k.
func (k *routeKernel) lock(name string) (release func(), err error) {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("another router has the same protocol, table and metric, or the same probe tables: "+
			"give one of them another metric and other probe tables, or end it; ss -xp shows who has %s", name)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", name, err)
	}
	k.locks = append(k.locks, c)
	return func() { _ = c.Close() }, nil
}

// unwatch ends watch.
func (k *routeKernel) unwatch() { k.events.Close() }

// close gives back everything. It is called once.
func (k *routeKernel) close() {
	close(k.done)
	for _, s := range []*nl.NetlinkSocket{k.talk, k.events} {
		if s != nil {
			s.Close()
		}
	}
	for _, c := range k.locks {
		_ = c.Close()
	}
}

// A routeRefusal is the kernel's no, with what it says about it.
type routeRefusal struct {
	errno syscall.Errno
	words string // empty with old kernels, and where the kernel is laconic
	hint  string // what to do
}

func (e *routeRefusal) Error() string {
	text := e.errno.Error()
	if e.words != "" {
		text = e.words + " (" + text + ")"
	}
	if e.hint != "" {
		text += ": " + e.hint
	}
	return text
}

// Unwrap leads errors.Is to the kernel's number, and to errors.ErrUnsupported
// where it says that.
func (e *routeRefusal) Unwrap() []error {
	if e.errno == unix.EAFNOSUPPORT {
		return []error{e.errno, errors.ErrUnsupported}
	}
	return []error{e.errno}
}

func newRefusal(errno syscall.Errno, words string) error {
	e := &routeRefusal{errno: errno, words: words}
	switch errno {
	case unix.EPERM:
		e.hint = "this needs CAP_NET_ADMIN in the network namespace: run it as root, or give it the capability"
	case unix.EAFNOSUPPORT, unix.EOPNOTSUPP:
		e.hint = "this kernel cannot do that: it needs IPv6 for IPv6 and for IPv6 next hops (5.2 and later for IPv4 networks), and policy routing for probing one path"
	case unix.ENETUNREACH, unix.EHOSTUNREACH:
		e.hint = "no interface that is up has the next hop for a neighbour: ip route get VIA; OnLink does without an address there"
	case unix.ENETDOWN:
		e.hint = "set it up: ip link set dev INTERFACE up"
	case unix.EACCES:
		e.hint = "is IPv6 off there? sysctl net.ipv6.conf.all.disable_ipv6"
	case unix.EINVAL:
		e.hint = "is Source an address of this host by now?"
	}
	return e
}

// errRoutesLost is the answer to requests whose answers did not fit.
var errRoutesLost = errors.New("the kernel dropped its answer: too many refusals at once")

// do sends messages, each begun with beginMessage, and returns the kernel's answer
// to each, nil for yes.
func (k *routeKernel) do(messages [][]byte) []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	answers := make([]error, len(messages))
	for start := 0; start < len(messages); {
		end, size := start, 0
		for end < len(messages) && (end == start || size+len(messages[end]) <= routeBatch) {
			size += len(messages[end])
			end++
		}
		if err := k.doBatch(messages[start:end], answers[start:end]); err != nil {
			for i := start; i < len(messages); i++ {
				if answers[i] == nil && (i >= end || errors.Is(err, errRoutesLost)) {
					answers[i] = err
				}
			}
			return answers
		}
		start = end
	}
	return answers
}

// doBatch sends some messages as one and collects the answers. Only for the last
// one a yes is asked for: the kernel works through them in order.
func (k *routeKernel) doBatch(messages [][]byte, answers []error) error {
	first := k.seq + 1
	var batch []byte
	for i, m := range messages {
		k.seq++
		flags := uint16(unix.NLM_F_REQUEST)
		if i == len(messages)-1 {
			flags |= unix.NLM_F_ACK
		}
		batch = append(batch, finishMessage(m, flags, k.seq)...)
	}
	if err := unix.Sendto(k.talk.GetFd(), batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		err = fmt.Errorf("netlink: %w", err)
		for i := range answers {
			answers[i] = err
		}
		return err
	}
	for {
		list, _, err := k.talk.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			k.drain()
			return errRoutesLost
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errRoutesLost, err)
		}
		for _, m := range list {
			i := m.Header.Seq - first
			if m.Header.Type != unix.NLMSG_ERROR || i >= uint32(len(messages)) || m.Header.Pid != k.port {
				continue // an answer to what was given up
			}
			answers[i] = parseAnswer(m)
			if i == uint32(len(messages)-1) {
				return nil
			}
		}
	}
}

// drain reads what is there. Once the kernel has had to drop an answer it drops
// all others, too, until nothing is left to read.
func (k *routeKernel) drain() {
	b := make([]byte, 64<<10)
	for {
		_, _, err := unix.Recvfrom(k.talk.GetFd(), b, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// list asks for a list and calls f with each item. It asks again when the list
// has changed meanwhile, after reset.
func (k *routeKernel) list(request []byte, reset func(), f func(syscall.NetlinkMessage) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	for range 5 {
		reset()
		if err = k.listOnce(request, f); !errors.Is(err, errListChanged) {
			break
		}
	}
	return err
}

var errListChanged = errors.New("netlink: the list changed while it was read")

func (k *routeKernel) listOnce(request []byte, f func(syscall.NetlinkMessage) error) error {
	k.seq++
	message := finishMessage(slices.Clone(request), unix.NLM_F_REQUEST|unix.NLM_F_DUMP, k.seq)
	if err := unix.Sendto(k.talk.GetFd(), message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	changed := false
	for {
		list, _, err := k.talk.Receive()
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		for _, m := range list {
			if m.Header.Seq != k.seq || m.Header.Pid != k.port {
				continue
			}
			changed = changed || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := parseAnswer(m); err != nil {
					return err
				}
				if changed {
					return errListChanged
				}
				return nil
			}
			if err := f(m); err != nil {
				return err
			}
		}
	}
}

// setMark marks the packets of a socket.
func setMark(fd uintptr, mark uint32) error {
	err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("pathcontrol: marking a socket needs CAP_NET_ADMIN: run it as root, or give it the capability: %w", err)
	}
	return err
}
