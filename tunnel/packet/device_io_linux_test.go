package packet

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// pairOptions say how two devices are joined.
type pairOptions struct {
	mode    Mode
	take    [2]Offload // what ReadBatch of each end may hand over
	finish  [2]Offload // what each end is handed; the rest is finished before
	batch   int        // size of the batches; 0: default
	inspect func(from int, f Frame)
}

const pairMTU = 1400

// pair makes two hosts with a device each, which are joined as a link would do it:
// 10.9.0.1 and fd00::1, 10.9.0.2 and fd00::2. It runs near in the first one, then far in the
// other, and then body. All frames go through Check, which has to find nothing wrong.
func pair(t *testing.T, o pairOptions, near, far, body func(t *testing.T)) {
	t.Helper()
	var ends [2]*Device
	open := func(t *testing.T, i int) {
		d := openOrSkip(t, o.mode, &DeviceOptions{MTU: pairMTU, Addresses: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 1)}), 64),
		}})
		if err := d.SetOffload(o.take[i]); err != nil {
			t.Fatal(err)
		}
		ends[i] = d
		if err := d.SetCarrier(true); err != nil {
			t.Fatal(err)
		}
		// The kernel drops what it sends before it has seen the carrier.
		eventually(t, "the device runs", func() bool { return o.mode == TUN || linkNamed(t, d.Name()).Attrs().OperState == netlink.OperUp })
	}
	var joined sync.WaitGroup
	defer func() {
		for _, d := range ends {
			if d != nil {
				_ = d.Close()
			}
		}
		joined.Wait()
		for i, d := range ends {
			if t.Failed() || t.Skipped() {
				break
			}
			if s := d.Stats(); s.Refused+s.Full+s.Down+s.Unreadable != 0 || s.ReadPackets == 0 || s.WriteBytes == 0 {
				t.Errorf("end %d: %+v", i, s)
			}
		}
	}()
	tunneltest.InNetns(t, func(t *testing.T) {
		open(t, 0)
		near(t)
		tunneltest.InNetns(t, func(t *testing.T) {
			open(t, 1)
			for i := range ends {
				joined.Go(func() { join(t, o, i, ends[i], ends[1-i]) })
			}
			far(t)
		})
		body(t)
	})
}

// join carries what one end sends to the other until one of them is closed.
func join(t *testing.T, o pairOptions, from int, in, out *Device) {
	read, write := NewBatch(o.batch), NewBatch(o.batch)
	emit := func(f Frame) error {
		if write.Append(f) {
			return nil
		}
		if err := out.WriteBatch(write); err != nil {
			return err
		}
		write.Reset()
		if !write.Append(f) {
			return errors.New("a frame does not fit into an empty batch")
		}
		return nil
	}
	for {
		err := in.ReadBatch(read)
		for f := range read.Frames() {
			if err != nil {
				break
			}
			if o.inspect != nil {
				o.inspect(from, f)
			}
			if bad := Check(f, o.mode, pairMTU); bad != nil {
				t.Errorf("end %d sends what Check refuses: %v: % x", from, bad, f.Data[:min(len(f.Data), 100)])
			}
			err = Segment(f, o.mode, o.finish[1-from], emit)
		}
		if err == nil {
			err = out.WriteBatch(write)
			write.Reset()
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("end %d: %v", from, err)
			}
			return
		}
	}
}

// TestDeviceTCP sends streams in both directions between two kernels, one of which may
// lack everything: bytes arrive intact.
func TestDeviceTCP(t *testing.T) {
	for _, c := range []struct {
		name         string
		take, finish [2]Offload
		batch        int
	}{
		{"offload at both ends", [2]Offload{OffloadAll, OffloadAll}, [2]Offload{OffloadAll, OffloadAll}, 0},
		{"at none", [2]Offload{}, [2]Offload{}, 0},
		{"at one", [2]Offload{OffloadAll, 0}, [2]Offload{OffloadAll, 0}, 0},
		{"software both ways", [2]Offload{OffloadAll, OffloadAll}, [2]Offload{}, 0},
		{"software, but for the checksum", [2]Offload{OffloadAll, OffloadAll}, [2]Offload{OffloadChecksum, OffloadChecksum}, 0},
		{"checksum alone", [2]Offload{OffloadChecksum, OffloadChecksum}, [2]Offload{}, 0},
		{"small batches", [2]Offload{OffloadAll, OffloadAll}, [2]Offload{}, 1},
	} {
		for _, m := range bothModes {
			for _, ip := range []string{"10.9.0.1", "fd00::1"} {
				t.Run(fmt.Sprintf("%s/%v/%s", c.name, m, ip), func(t *testing.T) {
					var large atomic.Int64
					o := pairOptions{mode: m, take: c.take, finish: c.finish, batch: c.batch, inspect: func(_ int, f Frame) {
						if f.Data[1] != gsoNone {
							large.Add(1)
						}
					}}
					var conn net.Conn
					var l net.Listener
					pair(t, o, func(t *testing.T) {
						var err error
						if l, err = net.Listen("tcp", net.JoinHostPort(ip, "7")); err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { _ = l.Close() })
					}, func(t *testing.T) {
						var err error
						if conn, err = net.Dial("tcp", net.JoinHostPort(ip, "7")); err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { _ = conn.Close() })
					}, func(t *testing.T) {
						accepted, err := l.Accept()
						if err != nil {
							t.Fatal(err)
						}
						defer accepted.Close()
						streamBoth(t, accepted, conn)
					})
					if got := large.Load() > 0; got != (c.take[0] > OffloadChecksum) {
						t.Errorf("%d packets to be segmented", large.Load())
					}
				})
			}
		}
	}
}

// streamBoth sends 2 MiB each way at once, and looks at what arrives.
func streamBoth(t *testing.T, a, b net.Conn) {
	t.Helper()
	r := rand.NewChaCha8([32]byte{1})
	data := make([]byte, 2<<20)
	_, _ = r.Read(data)
	want := sha256.Sum256(data)
	var wait sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		wait.Go(func() {
			if _, err := c.Write(data); err != nil {
				t.Errorf("write: %v", err)
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Errorf("CloseWrite: %v", err)
			}
		})
		wait.Go(func() {
			h := sha256.New()
			if n, err := io.Copy(h, c); err != nil || [32]byte(h.Sum(nil)) != want {
				t.Errorf("%d of %d bytes arrive intact, %v", n, len(data), err)
			}
		})
	}
	wait.Wait()
}

// TestDeviceUSO sends datagrams that one system call makes, 50 at a time.
func TestDeviceUSO(t *testing.T) {
	const size, count = 1000, 50
	for _, finish := range []Offload{OffloadAll, OffloadChecksum, 0} {
		for _, ip := range []string{"10.9.0.1", "fd00::1"} {
			t.Run(fmt.Sprintf("%v/%s", finish, ip), func(t *testing.T) {
				var large atomic.Int64
				o := pairOptions{take: [2]Offload{OffloadAll, OffloadAll}, finish: [2]Offload{finish, finish}, inspect: func(from int, f Frame) {
					if f.Data[1] == gsoUDP {
						large.Add(1)
					}
				}}
				var listener net.PacketConn
				var conn *net.UDPConn
				pair(t, o, func(t *testing.T) {
					var err error
					if listener, err = net.ListenPacket("udp", net.JoinHostPort(ip, "7")); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = listener.Close() })
				}, func(t *testing.T) {
					c, err := net.Dial("udp", net.JoinHostPort(ip, "7"))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = c.Close() })
					conn = c.(*net.UDPConn)
				}, func(t *testing.T) {
					raw, err := conn.SyscallConn()
					if err != nil {
						t.Fatal(err)
					}
					_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
					if err != nil {
						t.Skip("this kernel has no UDP_SEGMENT, it needs linux 4.18: ", err)
					}
					sent := make([]byte, size*count-1)
					_, _ = rand.NewChaCha8([32]byte{2}).Read(sent)
					if _, err := conn.Write(sent); err != nil {
						t.Fatal(err)
					}
					_ = listener.SetDeadline(time.Now().Add(20 * time.Second))
					var got []byte
					b := make([]byte, 2*size)
					for range count {
						n, from, err := listener.ReadFrom(b)
						if err != nil {
							t.Fatalf("after %d bytes: %v", len(got), err)
						}
						got = append(got, b[:n]...)
						_, _ = listener.WriteTo([]byte("thanks"), from)
					}
					if !bytes.Equal(got, sent) {
						t.Error("what arrives is something else")
					}
					_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
					if _, err := conn.Read(b); err != nil {
						t.Errorf("no answer: %v", err)
					}
				})
				if large.Load() == 0 {
					t.Log("this kernel has no USO")
				}
			})
		}
	}
}

// TestSegmentLikeKernel lets the kernel cut the same packets: what it forwards to a
// device that takes nothing are the same bytes.
func TestSegmentLikeKernel(t *testing.T) {
	tunneltest.InNetns(t, func(t *testing.T) {
		in := openOrSkip(t, TUN, &DeviceOptions{MTU: 1700, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.9/24"), netip.MustParsePrefix("fd00:0:0:1::9/64")}})
		out := openOrSkip(t, TUN, &DeviceOptions{MTU: 1700, QueueLen: 2 * MaxSegments, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.9/24"), netip.MustParsePrefix("fd00:0:0:2::9/64")}})
		for _, name := range []string{"ipv4/conf/all", "ipv6/conf/all"} {
			if err := os.WriteFile("/proc/sys/net/"+name+"/forwarding", []byte("1"), 0); err != nil {
				t.Skip("cannot forward here, run it as root: ", err)
			}
		}
		late := time.AfterFunc(60*time.Second, func() { _ = out.Close() })
		defer late.Stop()

		write, read := NewBatch(0), NewBatch(0)
		segments := 0
		for seed := range uint64(400) {
			r := rand.New(rand.NewPCG(seed, 8))
			g := randomForged(r)
			g.mode, g.vlan, g.src, g.dst = TUN, 0, 1, 2
			if g.options != nil {
				g.options = bytes.Repeat([]byte{1}, len(g.options)) // a router reads them
			}
			if g.extensions != nil {
				g.extensions = []byte{g.protocol, 0, 1, 4, 0, 0, 0, 0} // likewise, padding
			}
			if g.protocol == protoUDP && in.Offload()&OffloadUSO == 0 {
				continue
			}
			g.ttl = 64
			write.Reset()
			write.Append(g.frame())
			if err := in.WriteBatch(write); err != nil {
				t.Fatal(err)
			}
			g.ttl = 63
			want, err := segmentsOf(g.frame(), TUN, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(want); {
				if err := out.ReadBatch(read); err != nil {
					t.Fatalf("seed %d, %+v: %d of %d segments, then %v; %+v", seed, g.header, i, len(want), err, in.Stats())
				}
				for f := range read.Frames() {
					if p := f.Packet(); p[0]>>4 == 6 && p[24] == 0xff {
						continue // a router tells which multicast it listens to
					}
					if i >= len(want) || !bytes.Equal(f.Data, want[i].Data) && !sameButZero(f, want[i]) {
						t.Fatalf("seed %d, segment %d of %d:\n% x, want\n% x", seed, i, len(want), f.Data[:min(120, len(f.Data))], want[min(i, len(want)-1)].Data[:120])
					}
					i++
				}
			}
			segments += len(want)
		}
		t.Logf("%d segments are the same", segments)
	})
}

// sameButZero reports whether two packets of TCP differ in nothing but how their
// checksum writes zero.
func sameButZero(a, b Frame) bool {
	l, err := locate(b.Packet(), TUN)
	if err != nil || l.findTransport(b.Packet()) != nil || l.protocol != protoTCP || len(a.Data) != len(b.Data) {
		return false
	}
	a.Data = bytes.Clone(a.Data)
	c, want := a.Packet()[l.transport+16:], b.Packet()[l.transport+16:]
	if c[0] != 0 || c[1] != 0 || want[0] != 0xff || want[1] != 0xff {
		return false
	}
	c[0], c[1] = 0xff, 0xff
	return bytes.Equal(a.Data, b.Data)
}
