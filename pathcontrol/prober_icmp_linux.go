package pathcontrol

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errNoSocket is what a process lacks that may not ping.
var errNoSocket = errors.New("pathcontrol: no ICMP socket: put a group of this process into the sysctl net.ipv4.ping_group_range, or give the process CAP_NET_RAW")

// pingSocket is one of datagrams or, where these are not allowed, a raw one. The
// kernel queues the ICMP errors that come back with what they quote. It is not
// connected, because that would fix the source address, and the right one may
// come only with a later route.
type pingSocket struct {
	net.PacketConn
	to    net.Addr
	from  netip.Addr // who has to answer, without zone
	ident int
}

func openEcho(addr netip.Addr, through Through) (echoConn, error) {
	datagram, err := openPing(addr, through, unix.SOCK_DGRAM)
	if err == nil {
		return datagram, nil
	}
	if !errors.Is(err, errNotAllowed) {
		return nil, err
	}
	raw, err := openPing(addr, through, unix.SOCK_RAW)
	if errors.Is(err, errNotAllowed) {
		return nil, fmt.Errorf("%w: %w", errNoSocket, os.ErrPermission)
	} else if err != nil {
		return nil, err
	}
	return raw, nil
}

var errNotAllowed = errors.New("not allowed")

func openPing(addr netip.Addr, through Through, kind int) (_ *pingSocket, err error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if addr.Is6() {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	switch {
	case err == unix.EACCES || err == unix.EPERM || kind == unix.SOCK_DGRAM && err == unix.EPROTONOSUPPORT:
		return nil, errNotAllowed
	case err != nil:
		return nil, fmt.Errorf("pathcontrol: no ICMP socket: %w", err)
	}
	open := true
	defer func() {
		if err != nil {
			if open {
				unix.Close(fd)
			}
			err = fmt.Errorf("pathcontrol: ICMP socket to %v: %w", addr, err)
		}
	}()
	if err := through.set(fd); err != nil {
		return nil, err
	}
	if err := setOptions(fd, kind, addr.Is6()); err != nil {
		return nil, err
	}
	sa, err := localAddr(addr, through.Source)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, sa); err != nil { // which also gives an identifier
		return nil, fmt.Errorf("bind to %v: %w", through.Source, err)
	}
	p := &pingSocket{from: addr.WithZone("")}
	if p.ident, err = ident(fd, kind); err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "icmp")
	defer file.Close()
	open = false
	if p.PacketConn, err = net.FilePacketConn(file); err != nil {
		return nil, err
	}
	p.to = &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
	if kind == unix.SOCK_DGRAM {
		p.to = net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
	}
	return p, nil
}

// setOptions asks for errors and, of a raw socket, for nothing but answers.
func setOptions(fd, kind int, v6 bool) error {
	if v6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1); err != nil {
			return err
		}
	} else if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1); err != nil {
		return err
	}
	if kind != unix.SOCK_RAW {
		return nil
	}
	if v6 {
		var filter unix.ICMPv6Filter // a bit blocks a type
		for i := range filter.Data {
			filter.Data[i] = 1<<32 - 1
		}
		filter.Data[129/32] &^= 1 << (129 % 32)
		return unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &filter)
	}
	return unix.SetsockoptInt(fd, unix.SOL_RAW, unix.ICMP_FILTER, int(^uint32(1)))
}

// ident is the identifier of requests: the kernel's choice for a datagram
// socket, ours for a raw one.
func ident(fd, kind int) (int, error) {
	if kind == unix.SOCK_RAW {
		var b [2]byte
		rand.Read(b[:])
		return int(binary.BigEndian.Uint16(b[:])), nil
	}
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port, err
	case *unix.SockaddrInet6:
		return sa.Port, err
	}
	return -1, err
}

// localAddr is what to bind to, any address of the family by default.
func localAddr(addr, source netip.Addr) (unix.Sockaddr, error) {
	if addr.Is4() {
		sa := new(unix.SockaddrInet4)
		if source.IsValid() {
			sa.Addr = source.As4()
		}
		return sa, nil
	}
	sa := new(unix.SockaddrInet6)
	if !source.IsValid() {
		return sa, nil
	}
	sa.Addr = source.As16()
	if zone := cmp.Or(source.Zone(), addr.Zone()); zone != "" && source.IsLinkLocalUnicast() {
		i, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("zone %s: %w", zone, err)
		}
		sa.ZoneId = uint32(i.Index)
	}
	return sa, nil
}

func (p *pingSocket) id() int                           { return p.ident }
func (p *pingSocket) close() error                      { return p.Close() }
func (p *pingSocket) setReadDeadline(t time.Time) error { return p.SetReadDeadline(t) }

func (p *pingSocket) write(message []byte) error {
	_, err := p.WriteTo(message, p.to)
	return bare(err)
}

// bare is what the system said.
func bare(err error) error {
	if e := (*os.SyscallError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// read returns nothing for a message from somebody else, which a raw socket
// gets too.
func (p *pingSocket) read(b []byte) (int, error) {
	n, from, err := p.ReadFrom(b)
	if err != nil {
		return 0, bare(err)
	}
	var ip net.IP
	switch from := from.(type) {
	case *net.UDPAddr:
		ip = from.IP
	case *net.IPAddr:
		ip = from.IP
	}
	if a, _ := netip.AddrFromSlice(ip); a.Unmap() != p.from {
		return 0, nil
	}
	return n, nil
}

// isTransient tells an error of reading after which reading goes on: one that
// an ICMP error has left, whose message another has taken.
func isTransient(err error) bool {
	for _, e := range []error{unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ECONNREFUSED, unix.EMSGSIZE, unix.EPROTO,
		unix.ENOPROTOOPT, unix.EACCES, unix.EHOSTDOWN, unix.ENONET, unix.EOPNOTSUPP, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// failures empties the error queue.
func (p *pingSocket) failures() (list []failure) {
	conn, ok := p.PacketConn.(syscall.Conn)
	if !ok {
		return nil
	}
	c, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	_ = c.Control(func(fd uintptr) {
		for range 64 {
			b, oob := make([]byte, 128), make([]byte, 512)
			n, oobn, _, _, err := unix.Recvmsg(int(fd), b, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			if e := parseFailure(oob[:oobn]); e != nil {
				list = append(list, failure{b[:n], e})
			}
		}
	})
	return list
}

// parseFailure reads a struct sock_extended_err and the address behind it.
func parseFailure(oob []byte) *UnreachableError {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	for _, m := range messages {
		v4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(m.Data) < size {
			continue
		}
		e := &UnreachableError{Err: unix.Errno(binary.NativeEndian.Uint32(m.Data))}
		if origin := m.Data[4]; origin == unix.SO_EE_ORIGIN_ICMP || origin == unix.SO_EE_ORIGIN_ICMP6 {
			e.Type, e.Code = int(m.Data[5]), int(m.Data[6])
			e.From = offender(m.Data[size:])
		}
		return e
	}
	return nil
}

// offender reads a struct sockaddr.
func offender(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrFrom16([16]byte(b[8:24]))
	}
	return netip.Addr{}
}
