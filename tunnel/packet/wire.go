package packet

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Frames of a link have a head of four bytes, see [Batch]. Types below 16 carry
// packets, those from 16 on JSON objects. An unknown type that carries packets
// ends the link, because packets would be lost without a word; an unknown
// other type is skipped and an unknown field ignored, so that a newer peer can
// say more than this one understands. tunnel/PROTOCOL.md has the whole.
const (
	firstControl = 16

	typeHello = 16
	typePing  = 17
	typePong  = 18
	typeReach = 19
	typeDrain = 20
	typeBye   = 21
)

// maxControl bounds the payload of a control frame that is not REACH.
const maxControl = 64 << 10

// pingMessage is the payload of PING and, as it came, of PONG.
type pingMessage struct {
	Seq  uint64 `json:"seq"`
	Sent int64  `json:"sent"` // sender's clock, ns; meaningless to others
}

// Codes of BYE: why a side ends a link, and so what a [Client] does next.
const (
	ByeShutdown = "shutdown" // the server ends or restarts: back-off as after any loss
	ByeReplaced = "replaced" // another process uses this id or address: 30 to 90 s
	ByeDenied   = "denied"   // the credential does not admit this: at least 5 to 10 s
	ByeFull     = "full"     // the server has as many links as it may: at least 5 to 10 s
	ByeVersion  = "version"  // no common version of the protocol: 30 to 90 s
	ByeMismatch = "mismatch" // the sides do not fit, such as TAP and TUN: 30 to 90 s
	ByeProtocol = "protocol" // something malformed came: back-off as after any loss
)

type byeMessage struct {
	Code       string `json:"code"`
	Reason     string `json:"reason,omitempty"`
	RetryAfter int    `json:"retryAfter,omitempty"` // seconds
}

// ByeError is why a link ended that one of its sides has ended with words. An
// Admit function, or what serves a link, returns one to choose the words.
type ByeError struct {
	// Code and Reason are what was said. Reason is for people.
	Code, Reason string
	// RetryAfter is how long the client stays away at least; 0 leaves it to the
	// code. On the wire it is in whole seconds, rounded up.
	RetryAfter time.Duration
	// Remote says that the peer said it.
	Remote bool
}

// Error tells who said what.
func (e *ByeError) Error() string {
	if e.Remote {
		return fmt.Sprintf("packet: the peer ended the link: %s: %s", e.Code, e.Reason)
	}
	return fmt.Sprintf("packet: link ended: %s: %s", e.Code, e.Reason)
}

func bye(code, reason string) *ByeError { return &ByeError{Code: code, Reason: reason} }

// decodeBye returns what the peer said as an error, or what is wrong with it.
func decodeBye(body []byte) error {
	var m byeMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return malformed("BYE: %v", err)
	}
	return &ByeError{
		Code: clip(m.Code), Reason: clip(m.Reason), Remote: true,
		RetryAfter: time.Duration(min(max(m.RetryAfter, 0), 3600)) * time.Second,
	}
}

// message is e as it is sent.
func (e *ByeError) message() byeMessage {
	return byeMessage{Code: e.Code, Reason: clip(e.Reason), RetryAfter: int((e.RetryAfter + time.Second - 1) / time.Second)}
}

// clip cuts what a peer says for people to what fits a log line.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

// ErrProtocol is the error of a link whose peer sent what is no frame.
var ErrProtocol = errors.New("packet: malformed frame")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// bounds returns the shortest and the longest payload that a frame of a type may
// have, or why there can be no such frame.
func bounds(kind byte) (least, most int, err error) {
	switch {
	case kind == typePacket:
		return HeaderLen, HeaderLen + MaxPacket, nil
	case kind == typeNumbered:
		return numberLen + HeaderLen, maxPayload, nil
	case kind < firstControl:
		return 0, 0, malformed("type %d, which would carry packets, is not known", kind)
	case kind == typeReach:
		return 0, maxReach, nil
	}
	return 0, maxControl, nil
}

// appendControl appends a control frame.
func appendControl(b []byte, kind byte, payload any) ([]byte, error) {
	body, err := json.Marshal(payload)
	if err != nil {
		return b, fmt.Errorf("packet: control frame %d: %w", kind, err)
	}
	if _, most, _ := bounds(kind); len(body) > most {
		return b, fmt.Errorf("packet: control frame %d of %d bytes is longer than %d", kind, len(body), most)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(kind)<<24|uint32(len(body)))
	return append(b, body...), nil
}
