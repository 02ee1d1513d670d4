package entrypoint

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// captureConn keeps what is written and yields nothing.
type captureConn struct {
	net.Conn
	bytes.Buffer
}

func (c *captureConn) Write(b []byte) (int, error) { return c.Buffer.Write(b) }
func (c *captureConn) Read([]byte) (int, error)    { return 0, io.EOF }
func (c *captureConn) Close() error                { return nil }

// helloOf is the first flight of a crypto/tls client.
func helloOf(t testing.TB, c *tls.Config) string {
	t.Helper()
	conn := new(captureConn)
	_ = tls.Client(conn, c).Handshake()
	if conn.Len() == 0 {
		t.Fatal("no ClientHello")
	}
	return conn.String()
}

func hello(t testing.TB, name string) string {
	return helloOf(t, &tls.Config{ServerName: name, InsecureSkipVerify: name == ""})
}

// payload is what stands in the records of a hello: the handshake message.
func payload(hello string) []byte {
	var msg []byte
	for b := []byte(hello); len(b) >= 5; {
		n := int(binary.BigEndian.Uint16(b[3:]))
		msg = append(msg, b[5:5+n]...)
		b = b[5+n:]
	}
	return msg
}

// records puts a handshake message into records of at most n bytes.
func records(msg []byte, n int) string {
	var b []byte
	for part := range slices.Chunk(msg, n) {
		b = append(b, recordHandshake, 3, 1)
		b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
		b = append(b, part...)
	}
	return string(b)
}

// extended is a handshake message with one more extension.
func extended(msg []byte, kind uint16, data []byte) []byte {
	at := 4 + 2 + 32                                 // type, length, version, random
	at += 1 + int(msg[at])                           // session id
	at += 2 + int(binary.BigEndian.Uint16(msg[at:])) // ciphers
	at += 1 + int(msg[at])                           // compressions
	size := int(binary.BigEndian.Uint16(msg[at:]))   // extensions
	b := slices.Clone(msg[:at+2+size])               // without what is behind them
	b = binary.BigEndian.AppendUint16(b, kind)       //
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2))
	n := len(b) - 4
	b[1], b[2], b[3] = byte(n>>16), byte(n>>8), byte(n)
	return b
}

const (
	extensionPadding = 21
	extensionECH     = 0xfe0d
)

// sized is a hello for a name whose message has n bytes behind its four of head,
// in records as large as they may be.
func sized(t testing.TB, name string, n int) string {
	msg := payload(hello(t, name))
	return records(extended(msg, extensionPadding, make([]byte, n-len(msg))), 1<<14)
}

// rewriter rewrites the first write of a client, its hello, and may write all in
// single bytes.
type rewriter struct {
	net.Conn
	hello func(string) string
	drip  bool
}

func (r *rewriter) Write(b []byte) (int, error) {
	out := string(b)
	if r.hello != nil {
		out, r.hello = r.hello(out), nil
	}
	step := len(out)
	if r.drip {
		step = 1
	}
	for part := range slices.Chunk([]byte(out), max(step, 1)) {
		if _, err := r.Conn.Write(part); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// manyProtocols is an ALPN list of n bytes.
func manyProtocols(n int) []string {
	var all []string
	for i := 0; n > 0; i++ {
		p := strings.Repeat(string(rune('a'+i%26)), max(1, min(n-1, 255)))
		all = append(all, p)
		n -= 1 + len(p)
	}
	return all
}

// whole does a handshake with a hello that has been rewritten, and talks.
func (w *world) whole(door string, c *tls.Config, rewrite func(string) string, drip bool) {
	w.Helper()
	c.RootCAs = w.ca.Pool()
	conn := tls.Client(&rewriter{w.dial("client", door), rewrite, drip}, c)
	if err := conn.HandshakeContext(w.Context()); err != nil {
		w.Fatalf("%v\n%s", err, w.log)
	}
	if got := line(conn); got != c.ServerName {
		w.Fatalf("greeted by %q", got)
	}
	send(conn, "question\n")
	if got := line(conn); got != "question" {
		w.Fatalf("echo %q", got)
	}
	_ = conn.Close()
}

func TestClientHelloOneByteAtATime(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.whole(doorSNI, &tls.Config{ServerName: nameA}, nil, true)
		w.whole(doorAll, &tls.Config{ServerName: nameB}, nil, true)
		w.whole(doorSNI, &tls.Config{ServerName: nameB, NextProtos: manyProtocols(16 << 10)}, nil, true)
		w.onlyRefused(nil)
	})
}

func TestClientHello16KiB(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for _, n := range []int{1 << 10, 2 << 10, 4 << 10, 16<<10 - 600, 16 << 10, 16<<10 + 1, 30 << 10, 60 << 10, 62 << 10} {
			w.whole(doorSNI, &tls.Config{ServerName: nameA, NextProtos: manyProtocols(n)}, nil, false)
			w.whole(doorAll, &tls.Config{ServerName: nameB, NextProtos: manyProtocols(n)}, nil, false)
		}
		w.onlyRefused(nil)
	})
}

// The name may stand on both sides of the border between two records, and there
// may be a record for each byte.
func TestClientHelloTwoRecords(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for _, size := range []int{1, 2, 3, 4, 5, 40, 100, 128, 200} {
			again := func(h string) string { return records(payload(h), size) }
			w.whole(doorSNI, &tls.Config{ServerName: nameA}, again, false)
			w.whole(doorSNI, &tls.Config{ServerName: nameB}, again, size%2 == 0)
		}
		msg := payload(hello(t, nameA))
		for at := 1; at < len(msg); at += 13 {
			w.whole(doorSNI, &tls.Config{ServerName: nameA}, func(h string) string {
				return records(payload(h)[:at], 1<<14) + records(payload(h)[at:], 1<<14)
			}, false)
		}
		// One byte per record, 15 KiB in 90.
		w.whole(doorSNI, &tls.Config{ServerName: nameA, NextProtos: manyProtocols(15 << 10)},
			func(h string) string { return records(payload(h), 1) }, false)
		w.onlyRefused(nil)
	})
}

// What crypto/tls takes is taken, to the byte, and nothing above.
func TestClientHelloTooLarge(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.set(&Route{Name: "a", SNI: []string{nameA}, Handler: w.forward("gone:1")})
		try := func(what, say, want string) {
			t.Helper()
			c := w.dial("stranger", doorSNI)
			send(c, say)
			if got := outcome(c); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		try("64 KiB", sized(t, nameA, 64<<10), "alert 80") // the route is found
		w.onlyRefused(map[Reason]uint64{ReasonBackend: 1})
		try("a byte more", sized(t, nameA, 64<<10+1), "alert 50")
		announced := []byte(hello(t, nameA))
		announced[6] = 0xff // 16 MiB
		try("much more announced", string(announced), "alert 50")
		try("announced in pieces", records(payload(string(announced)), 1), "alert 50")
		msg := payload(sized(t, nameA, 22<<10))
		try("22 KiB in as many records", records(msg, 1), "alert 50")
		try("21 KiB in as many records", records(payload(sized(t, nameA, 21<<10)), 1), "alert 80")
		w.onlyRefused(map[Reason]uint64{ReasonBackend: 2, ReasonTooLarge: 4})
	})
}

// The outer name counts, whatever an encrypted one may be.
func TestEncryptedClientHello(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.set(&Route{Name: "a", SNI: []string{nameA}, Handler: w.forward("gone:1")})
		grease := append([]byte{0, 0, 1, 0, 1, 7, 0, 32}, make([]byte, 32)...) // outer, HKDF-SHA256, AES-128-GCM, an id, a key
		grease = binary.BigEndian.AppendUint16(grease, 144)
		grease = append(grease, make([]byte, 144)...)
		msg := payload(hello(t, nameA))
		for what, ech := range map[string][]byte{
			"GREASE": grease, "inner": {1}, "cut off": grease[:20], "garbage": {0xff, 0xff, 0xff},
			"nothing": {}, "zeros": make([]byte, 500),
		} {
			c := w.dial("client", doorSNI)
			send(c, records(extended(msg, extensionECH, ech), 1<<14))
			if got := outcome(c); got != "alert 80" { // that of the route
				t.Errorf("%s: %s", what, got)
			}
		}
		w.onlyRefused(map[Reason]uint64{ReasonBackend: 6})
	})
}

// Names that no route has, and none, go to the default route or are told so.
func TestUnknownNames(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		names := map[string]string{
			"": "none", "192.0.2.1": "an address", "unknown.example.com": "unknown",
			"x" + nameA: "longer", nameA[1:]: "shorter", "ingress.a.example.com": "a wildcard's own",
			strings.Repeat("a.", 200) + nameA: "too long", ".ingress.a.example.com": "nothing below a wildcard",
		}
		for name, what := range names {
			msg := payload(hello(t, "original.example.com"))
			if name == "" {
				msg = payload(hello(t, ""))
			} else {
				msg = renamed(msg, "original.example.com", name)
			}
			c := w.dial("client", doorSNI)
			send(c, records(msg, 1<<14))
			if got := outcome(c); got != "alert 112" {
				t.Errorf("%s: %s", what, got)
			}
		}
		n := uint64(len(names))
		w.onlyRefused(map[Reason]uint64{ReasonUnknown: n})
		if _, err := w.tls(w.dial("client", doorSNI), "unknown.example.com"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("a client sees %v", err)
		}
		// A name in lower, upper or mixed case, below a wildcard however deep.
		for _, name := range []string{strings.ToUpper(nameA), nameA[:5] + strings.ToUpper(nameA[5:]), "x.ingress.a.example.com", "x.y.Z.ingress.A.example.com"} {
			c := tls.Client(w.dial("client", doorSNI), &tls.Config{InsecureSkipVerify: true, ServerName: name})
			if got := line(c); got != nameA {
				t.Errorf("%s leads to %q", name, got)
			}
			c.Close()
		}

		w.set(append(w.routes(), &Route{Name: "default", Default: true, Handler: w.forward("backend-b:443")})...)
		c := tls.Client(w.dial("client", doorSNI), &tls.Config{InsecureSkipVerify: true})
		if got := line(c); got != nameB {
			t.Errorf("the default route leads to %q", got)
		}
	})
}

// renamed replaces the server name in a hello.
func renamed(msg []byte, from, to string) []byte {
	at := bytes.Index(msg, []byte(from))
	b := slices.Concat(msg[:at], []byte(to), msg[at+len(from):])
	more := len(to) - len(from)
	add := func(at, size int) {
		for n := more; size > 0; size-- {
			n += int(b[at+size-1])
			b[at+size-1] = byte(n)
			n >>= 8
		}
	}
	add(1, 3)    // message
	add(at-2, 2) // name
	add(at-5, 2) // list of names
	add(at-7, 2) // extension
	ext := 4 + 2 + 32
	ext += 1 + int(b[ext])
	ext += 2 + int(binary.BigEndian.Uint16(b[ext:]))
	ext += 1 + int(b[ext])
	add(ext, 2) // all extensions
	return b
}

// Which versions and names a client may have is up to the backend.
func TestVersions(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for v := uint16(tls.VersionTLS10); v <= tls.VersionTLS13; v++ {
			found, all, err := readHello(&captureConn{}, []byte(helloOf(t, &tls.Config{ServerName: nameA, MinVersion: v, MaxVersion: v})), new(atomic.Int64))
			if err != nil || found.serverName != nameA || len(all) == 0 {
				t.Errorf("%x: %v %v", v, found, err)
			}
		}
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			w.whole(doorSNI, &tls.Config{ServerName: nameA, MinVersion: v, MaxVersion: v}, nil, false)
		}
		// The backend says itself that a version is too old.
		c := tls.Client(w.dial("client", doorSNI), &tls.Config{ServerName: nameA, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10})
		if err := c.Handshake(); err == nil || !strings.Contains(err.Error(), "protocol version not supported") {
			t.Errorf("TLS 1.0: %v", err)
		}
		w.onlyRefused(nil)
	})
}

// ALPN is seen, and of a list without end only the beginning is kept.
func TestALPN(t *testing.T) {
	h := helloOf(t, &tls.Config{ServerName: nameA, NextProtos: []string{"h2", "http/1.1"}})
	found, _, err := readHello(&captureConn{}, []byte(h), new(atomic.Int64))
	if err != nil || !slices.Equal(found.alpn, []string{"h2", "http/1.1"}) {
		t.Errorf("%v %v", found, err)
	}
	h = helloOf(t, &tls.Config{ServerName: nameA, NextProtos: slices.Repeat([]string{"x"}, 20000)})
	found, all, err := readHello(&captureConn{}, []byte(h), new(atomic.Int64))
	if err != nil || len(found.alpn) != maxALPN || cap(found.alpn) > 2*maxALPN || string(all) != h {
		t.Errorf("%d protocols are kept: %v", len(found.alpn), err)
	}
}

// Everything behind the first byte of a TLS record may be wrong.
func TestMalformedHello(t *testing.T) {
	good := hello(t, nameA)
	change := func(at int, to byte) string {
		b := []byte(good)
		b[at] = to
		return string(b)
	}
	dot := renamed(payload(good), nameA, nameA+".")
	twice := extended(payload(good), 0, append([]byte{0, byte(len(nameB) + 3), 0, 0, byte(len(nameB))}, nameB...))
	empty := renamed(payload(good), nameA, "")
	const bad, alert = ReasonMalformed, "alert 50"
	refuseAll(t, []hostile{
		{"garbage", doorSNI, "", "\x16" + strings.Repeat("\xff", 100), false, bad, alert},
		{"zeros", doorSNI, "", "\x16" + strings.Repeat("\x00", 100), false, bad, alert},
		{"text", doorSNI, "", "\x16GET / HTTP/1.1\r\n\r\n", false, bad, alert},
		{"another record behind", doorSNI, "", records(payload(good)[:50], 50) + "\x17\x03\x03\x00\x01x", false, bad, alert},
		{"an alert behind", doorSNI, "", records(payload(good)[:50], 50) + "\x15\x03\x01\x00\x02\x02\x00", false, bad, alert},
		{"a ServerHello", doorSNI, "", change(5, 2), false, bad, alert},
		{"a Finished", doorSNI, "", change(5, 20), false, bad, alert},
		{"record version 9", doorSNI, "", change(1, 0x90), false, bad, alert},
		{"a session id of 255 bytes", doorSNI, "", change(43, 255), false, bad, alert},
		{"records of nothing", doorSNI, "", strings.Repeat("\x16\x03\x01\x00\x00", 100), false, bad, alert},
		{"a record above 16 KiB", doorSNI, "", "\x16\x03\x01\xff\xff" + strings.Repeat("\x00", 1000), false, bad, alert},
		// RFC 6066 §3: no dot at the end.
		{"a dot at the end", doorSNI, "", records(dot, 1<<14), false, bad, alert},
		{"two names", doorSNI, "", records(twice, 1<<14), false, bad, alert},
		{"an empty name", doorSNI, "", records(empty, 1<<14), false, bad, alert},
	})
}
