package tunnel

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// rawAgent is a hostile agent: raw yamux frames after the upgrade.
type rawAgent struct {
	c    net.Conn
	r    *bufio.Reader
	wmu  sync.Mutex
	ctrl []byte
	// onStream is told of a stream whose CONNECT head has come.
	onStream func(a *rawAgent, id uint32)
	onCtrl   func(a *rawAgent, t byte, body []byte) bool // true: handled
	onReset  func(id uint32, code string)
	heads    map[uint32][]byte
	noPong   atomic.Bool
	noAck    atomic.Bool // do not ack RESETs
	streams  atomic.Int64
	resets   atomic.Int64
	done     chan struct{}
	err      error
	hello    chan struct{}
	regd     chan struct{}
	once     sync.Once
}

func rframe(kind byte, flags uint16, id, length uint32, body []byte) []byte {
	b := make([]byte, 12, 12+len(body))
	b[1] = kind
	binary.BigEndian.PutUint16(b[2:], flags)
	binary.BigEndian.PutUint32(b[4:], id)
	binary.BigEndian.PutUint32(b[8:], length)
	return append(b, body...)
}

func (a *rawAgent) write(b []byte) error {
	a.wmu.Lock()
	defer a.wmu.Unlock()
	_, err := a.c.Write(b)
	return err
}
func (a *rawAgent) data(id uint32, body []byte) error {
	return a.write(rframe(0, 0, id, uint32(len(body)), body))
}
func (a *rawAgent) msg(t byte, v any) error {
	body, _ := json.Marshal(v)
	return a.raw(t, body)
}
func ctrlMsg(t byte, body []byte) []byte {
	h := make([]byte, 4)
	binary.BigEndian.PutUint32(h, uint32(len(body)))
	h[0] = t
	return append(h, body...)
}
func (a *rawAgent) raw(t byte, body []byte) error { return a.data(1, ctrlMsg(t, body)) }

// upgradeRaw does the HTTP part on an open (TLS) conn.
func upgradeRaw(c net.Conn, header string) (*rawAgent, error) {
	_, err := io.WriteString(c, "GET /v1/session HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: rhizome/1\r\n"+header+"\r\n")
	if err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(c, 256<<10)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != 101 {
		return nil, fmt.Errorf("status %s", res.Status)
	}
	return &rawAgent{c: c, r: r, heads: map[uint32][]byte{}, done: make(chan struct{}), hello: make(chan struct{}), regd: make(chan struct{})}, nil
}

type rhello struct {
	MinVersion int               `json:"minVersion"`
	MaxVersion int               `json:"maxVersion"`
	Features   []string          `json:"features,omitempty"`
	ID         string            `json:"id"`
	Nonce      string            `json:"nonce"`
	Labels     map[string]string `json:"labels,omitempty"`
	Serves     []string          `json:"serves,omitempty"`
}

func helloOf(id, nonce string) rhello {
	return rhello{1, 1, []string{"reset", "peers", "drain"}, id, nonce, nil, nil}
}

// run reads frames until the end. On the server's HELLO it answers with h.
func (a *rawAgent) run(h any) {
	defer close(a.done)
	a.err = a.loop(h)
	a.c.Close()
}

func (a *rawAgent) loop(h any) error {
	var head [12]byte
	for {
		if _, err := io.ReadFull(a.r, head[:]); err != nil {
			return err
		}
		kind, flags := head[1], binary.BigEndian.Uint16(head[2:])
		id, n := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
		if flags&1 != 0 {
			if err := a.write(rframe(1, 2, id, 0, nil)); err != nil {
				return err
			}
		}
		if kind != 0 {
			continue
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(a.r, body); err != nil {
			return err
		}
		if n > 0 {
			_ = a.write(rframe(1, 0, id, n, nil)) // give the window back
		}
		if id == 1 {
			a.ctrl = append(a.ctrl, body...)
			for len(a.ctrl) >= 4 {
				l := int(binary.BigEndian.Uint32(a.ctrl) & 0xffffff)
				if len(a.ctrl) < 4+l {
					break
				}
				t, m := a.ctrl[0], append([]byte(nil), a.ctrl[4:4+l]...)
				a.ctrl = a.ctrl[4+l:]
				if a.onCtrl != nil && a.onCtrl(a, t, m) {
					continue
				}
				switch t {
				case 1:
					if h != nil {
						_ = a.msg(1, h)
					}
					close(a.hello)
				case 2:
					if !a.noPong.Load() {
						_ = a.raw(3, m)
					}
				case 5:
					var r struct {
						Stream uint32 `json:"stream"`
						Code   string `json:"code"`
					}
					_ = json.Unmarshal(m, &r)
					a.resets.Add(1)
					if a.onReset != nil {
						a.onReset(r.Stream, r.Code)
					}
					if r.Code == "abort" && !a.noAck.Load() {
						_ = a.msg(5, map[string]any{"stream": r.Stream, "code": "ack"})
						_ = a.write(rframe(1, 4, r.Stream, 0, nil))
					}
				case 6:
					a.once.Do(func() { close(a.regd) })
				}
			}
			continue
		}
		if hd, seen := a.heads[id]; hd != nil || !seen {
			hd = append(hd, body...)
			if i := len(hd); i >= 4 && string(hd[i-4:]) == "\r\n\r\n" {
				a.heads[id] = nil
				a.streams.Add(1)
				if a.onStream != nil {
					a.onStream(a, id)
				}
			} else {
				a.heads[id] = hd
			}
		}
	}
}
