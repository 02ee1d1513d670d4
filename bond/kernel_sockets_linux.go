package bond

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// rtnetlink is what is asked of the kernel: of its [sockets], or of one in a test.
type rtnetlink interface {
	// request sends one and returns the answers, which belong to the caller.
	request(kind, flags int, parts []nl.NetlinkRequestData) ([][]byte, error)
	// addressList lists the addresses of an interface.
	addressList(index int) ([]netlink.Addr, error)
	addressAdd(index int, a *netlink.Addr) error
	addressDel(index int, a *netlink.Addr) error
	// local reports whether what is sent to an address ends up here.
	local(addr netip.Addr) bool
	// receive waits for news of interfaces and addresses, from before the first
	// request on, until unlisten. With mark, it will return that number in its place
	// among the news; 0 else.
	receive() (news []syscall.NetlinkMessage, mark uint32, err error)
	mark(n uint32) error
	unlisten()
	// close ends all of it.
	close()
}

// sockets are those of a network namespace.
type sockets struct {
	lock      *net.UnixConn
	links     *nl.SocketHandle
	addresses *netlink.Handle
	news      *nl.NetlinkSocket
	port      uint32 // of news
}

// openSockets opens them in the network namespace of this thread, if no other
// process there has the bond.
func openSockets(bond string) (rtnetlink, error) {
	s := new(sockets)
	if err := s.open(bond); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *sockets) open(bond string) (err error) {
	lock := "@rhizome-bond/" + bond
	if s.lock, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: lock, Net: "unixgram"}); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("another process has the bond: end it first, ss -xp shows who has %s", lock)
		}
		return err
	}
	if s.news, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR); err != nil {
		return err
	}
	if s.port, err = s.news.GetPid(); err != nil {
		return err
	}
	links, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	s.links = &nl.SocketHandle{Socket: links}
	// The driver says in words why it refuses something; old kernels do not.
	_ = links.SetExtAck(true)
	s.addresses, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	return err
}

func (s *sockets) request(kind, flags int, parts []nl.NetlinkRequestData) ([][]byte, error) {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.links}
	for _, p := range parts {
		req.AddData(p)
	}
	return req.Execute(unix.NETLINK_ROUTE, 0)
}

// interfaceOf is an interface, for a function that wants to know its index only.
func interfaceOf(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func (s *sockets) addressList(index int) (list []netlink.Addr, err error) {
	for range 5 { // the list may change while it is read
		if list, err = s.addresses.AddrList(interfaceOf(index), netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

func (s *sockets) addressAdd(index int, a *netlink.Addr) error {
	return s.addresses.AddrAdd(interfaceOf(index), a)
}

func (s *sockets) addressDel(index int, a *netlink.Addr) error {
	return s.addresses.AddrDel(interfaceOf(index), a)
}

func (s *sockets) local(addr netip.Addr) bool {
	routes, err := s.addresses.RouteGet(addr.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

func (s *sockets) receive() (news []syscall.NetlinkMessage, mark uint32, err error) {
	news, _, err = s.news.Receive()
	if len(news) > 0 && news[0].Header.Pid == s.port {
		return nil, news[0].Header.Seq, err
	}
	return news, 0, err
}

// mark asks the kernel something by the socket on which it tells news: the answer
// comes behind all that it has told before. (What answers other sockets has their
// numbers as port.)
func (s *sockets) mark(n uint32) error {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = 1
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.Seq = n
	req.AddData(m)
	return s.news.Send(req)
}

func (s *sockets) unlisten() { s.news.Close() }

func (s *sockets) close() {
	if s.lock != nil {
		_ = s.lock.Close()
	}
	if s.news != nil {
		s.news.Close()
	}
	if s.links != nil {
		s.links.Close()
	}
	if s.addresses != nil {
		s.addresses.Close()
	}
}
