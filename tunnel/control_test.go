package tunnel

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestControlMessages(t *testing.T) {
	for _, tt := range []struct {
		kind messageType
		sent any
		wire string
	}{
		{typePing, pingMessage{Seq: 7, Sent: -1}, "\x02\x00\x00\x15" + `{"seq":7,"sent":-1}`},
		{typeDrain, drainMessage{Reason: drainShutdown}, "\x04\x00\x00\x15" + `{"reason":"shutdown"}`},
		{typeReset, resetMessage{Stream: 3, Code: resetAck}, "\x05\x00\x00\x1b" + `{"stream":3,"code":"ack"}`},
		{typePeers, peersMessage{}, "\x06\x00\x00\x02{}"},
		{typeBye, byeMessage{Code: byeQuota, RetryAfter: 10}, "\x07\x00\x00\x20" + `{"code":"quota","retryAfter":10}`},
	} {
		b, err := encodeMessage(tt.kind, tt.sent)
		if err != nil {
			t.Fatal(err)
		}
		want := tt.wire[:3] + string([]byte{byte(len(tt.wire) - 4)}) + tt.wire[4:]
		if string(b) != want {
			t.Errorf("type %d: %q, want %q", tt.kind, b, want)
		}
		r := bytes.NewReader(append(b, 0xff)) // and one byte of the next
		kind, body, err := readMessage(r)
		if err != nil || kind != tt.kind || r.Len() != 1 {
			t.Errorf("type %d: read as %d, %v, %d bytes left", tt.kind, kind, err, r.Len())
		}
		got := reflect.New(reflect.TypeOf(tt.sent))
		if err := decodeMessage(kind, body, got.Interface()); err != nil || !reflect.DeepEqual(got.Elem().Interface(), tt.sent) {
			t.Errorf("type %d: %+v, %v, want %+v", tt.kind, got.Elem(), err, tt.sent)
		}
	}
}

func TestControlBounds(t *testing.T) {
	if _, err := encodeMessage(typePeers, peersMessage{Servers: []string{strings.Repeat("x", maxMessage)}}); err == nil {
		t.Error("a message of more than 64 KiB was encoded")
	}
	if _, err := encodeMessage(typePing, func() {}); err == nil {
		t.Error("a function was encoded")
	}
	for _, tt := range []struct {
		name, wire string
		want       error // nil: any
	}{
		{"nothing", "", io.EOF},
		{"half a head", "\x02\x00", io.ErrUnexpectedEOF},
		{"no body", "\x02\x00\x00\x05", io.ErrUnexpectedEOF},
		{"half a body", "\x02\x00\x00\x05{}", io.ErrUnexpectedEOF},
		{"one byte too long", "\x02\x01\x00\x01" + strings.Repeat("x", maxMessage+1), nil},
	} {
		if _, _, err := readMessage(strings.NewReader(tt.wire)); err == nil || tt.want != nil && err != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	longest := "\x02\x01\x00\x00" + strings.Repeat(" ", maxMessage)
	if _, body, err := readMessage(strings.NewReader(longest)); err != nil || len(body) != maxMessage {
		t.Errorf("the longest message: %d bytes, %v", len(body), err)
	}
	var m pingMessage
	if err := decodeMessage(typePing, []byte(`{"seq":1,"sent":2,"new":{"deep":[1]}}`), &m); err != nil || m.Seq != 1 {
		t.Errorf("an unknown field: %+v, %v", m, err)
	}
	if err := decodeMessage(typePing, []byte(`{"seq":-1}`), &m); err == nil || !strings.Contains(err.Error(), "message 2") {
		t.Errorf("a negative number: %v", err)
	}
}

func TestNegotiate(t *testing.T) {
	for _, tt := range []struct{ min, max, theirMin, theirMax, want int }{
		{1, 1, 1, 1, 1},
		{1, 3, 1, 2, 2},
		{1, 3, 2, 9, 3},
		{2, 3, 1, 2, 2},
		{1, 1, 2, 3, 0},
		{2, 3, 1, 1, 0},
		{1, 9, 10, 11, 0},
	} {
		a := helloMessage{MinVersion: tt.min, MaxVersion: tt.max}
		b := helloMessage{MinVersion: tt.theirMin, MaxVersion: tt.theirMax}
		got, err := negotiate(&a, &b)
		back, backErr := negotiate(&b, &a)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("%+v: version %d, %v", tt, got, err)
		}
		if back != got || (backErr == nil) != (err == nil) {
			t.Errorf("%+v: the other side comes to %d, %v", tt, back, backErr)
		}
	}
	a := helloMessage{Features: []string{"x", "reset", "peers"}}
	b := helloMessage{Features: []string{"peers", "y", "x"}}
	if got, want := common(&a, &b), map[string]bool{"x": true, "peers": true}; !reflect.DeepEqual(got, want) {
		t.Errorf("common features %v, want %v", got, want)
	}
}

func TestHelloCheck(t *testing.T) {
	good := func() helloMessage {
		return helloMessage{MinVersion: 1, MaxVersion: 2, ID: "agent-1", Nonce: "01234567"}
	}
	h := good()
	if err := h.check(); err != nil {
		t.Fatal(err)
	}
	many := map[string]string{}
	for _, c := range strings.Repeat("x", maxLabels+1) {
		many[string(c)+strings.Repeat("y", len(many))] = ""
	}
	for name, bad := range map[string]func(*helloMessage){
		"version 0":        func(h *helloMessage) { h.MinVersion = 0 },
		"versions crossed": func(h *helloMessage) { h.MinVersion = 3 },
		"no id":            func(h *helloMessage) { h.ID = "" },
		"id with a space":  func(h *helloMessage) { h.ID = "agent 1" },
		"long id":          func(h *helloMessage) { h.ID = strings.Repeat("a", 254) },
		"short nonce":      func(h *helloMessage) { h.Nonce = "0123456" },
		"long nonce":       func(h *helloMessage) { h.Nonce = strings.Repeat("0", 65) },
		"many labels":      func(h *helloMessage) { h.Labels = many },
		"many features":    func(h *helloMessage) { h.Features = make([]string, maxLabels+1) },
		"long label":       func(h *helloMessage) { h.Labels = map[string]string{strings.Repeat("k", maxLabel+1): ""} },
		"long value":       func(h *helloMessage) { h.Labels = map[string]string{"k": strings.Repeat("v", maxLabel+1)} },
		"many networks":    func(h *helloMessage) { h.Serves = slices.Repeat([]string{"10.0.0.0/8"}, maxServes+1) },
		"bad network":      func(h *helloMessage) { h.Serves = []string{"10.0.0.0/33"} },
		"empty name":       func(h *helloMessage) { h.Serves = []string{""} },
		"address and zone": func(h *helloMessage) { h.Serves = []string{"fe80::1%eth0"} },
	} {
		h := good()
		bad(&h)
		if h.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// A second HELLO, a BYE and broken messages end a session with a reason, what
// is unknown does not.
func TestHandle(t *testing.T) {
	opener, _ := sessionPair(t)
	for _, kind := range []messageType{typePing, typePong, typeReset, typeDrain, typePeers, typeBye} {
		if err := opener.handle(kind, []byte("[")); err == nil {
			t.Errorf("a broken message of type %d was taken", kind)
		}
	}
	if err := opener.handle(typeHello, []byte("{}")); err == nil {
		t.Error("a second HELLO was taken")
	}
	var bye *byeError
	if err := opener.handle(typeBye, []byte(`{"code":"quota","reason":"full"}`)); !errors.As(err, &bye) || bye.Code != byeQuota || !strings.Contains(err.Error(), "full") {
		t.Errorf("BYE: %v", err)
	}
	if err := opener.handle(99, []byte("[")); err != nil {
		t.Errorf("an unknown message: %v", err)
	}
	if err := opener.handle(typeReset, []byte(`{"stream":77,"code":"abort"}`)); err != nil {
		t.Errorf("RESET of an unknown stream: %v", err)
	}
}

// PEERS is a feature that the peer must have named.
func TestPeersOnlyForWhoKnowsThem(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.plainDoor("server:80", "a")
		m, err := newYamux(w.upgraded("server:80"), yamuxConfig{
			maxStreams: 10, later: func(f func()) { go f() }, sendReset: func(resetMessage) {},
		})
		if err != nil {
			t.Fatal(err)
		}
		control, err := m.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := readMessage(control); err != nil {
			t.Fatal(err)
		}
		b, _ := encodeMessage(typeHello, helloMessage{MinVersion: 1, MaxVersion: 1, ID: "older", Nonce: newNonce()})
		if _, err := control.Write(b); err != nil {
			t.Fatal(err)
		}
		w.ready("a", 1)
		w.server.SetPeers([]string{"server", "other"})
		_ = control.SetReadDeadline(time.Now().Add(time.Second))
		if kind, _, err := readMessage(control); err == nil && kind == typePeers {
			t.Error("PEERS went to an agent without that feature")
		}
		_ = m.Close(nil)
	})
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x02{}"))
	f.Add([]byte("\x01\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		for {
			before := r.Len()
			kind, body, err := readMessage(r)
			if err != nil {
				if (err == io.EOF) != (before == 0) {
					t.Fatalf("%v with %d bytes left", err, before)
				}
				return
			}
			if len(body) > maxMessage || before-r.Len() != 4+len(body) {
				t.Fatalf("a body of %d bytes out of %d", len(body), before-r.Len())
			}
			if !json.Valid(body) {
				continue
			}
			again, err := encodeMessage(kind, json.RawMessage(body))
			if err != nil {
				t.Fatal(err)
			}
			if k, b, err := readMessage(bytes.NewReader(again)); err != nil || k != kind || !json.Valid(b) {
				t.Fatalf("written again: type %d, %v", k, err)
			}
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"minVersion":1,"maxVersion":1,"id":"agent","nonce":"0123456789","serves":["10.0.0.0/8",".svc"],"labels":{"a":"b"}}`))
	f.Add([]byte(`{"minVersion":9,"maxVersion":1,"id":"","nonce":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var h helloMessage
		if decodeMessage(typeHello, data, &h) != nil || h.check() != nil {
			return
		}
		switch {
		case h.MinVersion < 1 || h.MaxVersion < h.MinVersion:
			t.Fatalf("versions %d to %d", h.MinVersion, h.MaxVersion)
		case len(h.ID) == 0 || len(h.ID) > 253 || strings.ContainsAny(h.ID, " \n\"\x00"):
			t.Fatalf("id %q", h.ID)
		case len(h.Labels) > maxLabels || len(h.Serves) > maxServes || len(h.Features) > maxLabels:
			t.Fatal("more than there may be")
		}
		for _, s := range h.Serves {
			d, err := parseServed(s)
			if err != nil || d.prefix.IsValid() == (d.name != "") {
				t.Fatalf("destination %q: %+v, %v", s, d, err)
			}
		}
		local := (&Server{ID: "server"}).hello()
		if v, err := negotiate(&local, &h); err == nil && (v < h.MinVersion || v > h.MaxVersion || v < minVersion || v > maxVersion) {
			t.Fatalf("version %d", v)
		}
		for feature := range common(&local, &h) {
			if !slices.Contains(h.Features, feature) {
				t.Fatalf("feature %q", feature)
			}
		}
	})
}
