package tunnel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The control stream is the first stream of a session. Its messages are
//
//	type (1 byte) | length (3 bytes, big endian) | payload (JSON object)
//
// An unknown type is skipped and an unknown field ignored, so that a newer
// peer can say more than this one understands. PROTOCOL.md has the whole.
type messageType uint8

const (
	typeHello messageType = 1
	typePing  messageType = 2
	typePong  messageType = 3
	typeDrain messageType = 4
	typeReset messageType = 5
	typePeers messageType = 6
	typeBye   messageType = 7
)

// maxMessage bounds the payload of a control message.
const maxMessage = 64 << 10

// helloMessage is the first message in each direction. The server speaks
// first, so that an agent can tell a second connection to the same server
// process before it has registered there.
type helloMessage struct {
	MinVersion int               `json:"minVersion"`
	MaxVersion int               `json:"maxVersion"`
	Features   []string          `json:"features,omitempty"`
	ID         string            `json:"id"`
	Nonce      string            `json:"nonce"`
	Software   string            `json:"software,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Serves     []string          `json:"serves,omitempty"`
}

// pingMessage is the payload of PING and, as it came, of PONG.
type pingMessage struct {
	Seq  uint64 `json:"seq"`
	Sent int64  `json:"sent"` // sender's clock, ns; meaningless to others
}

// Reasons of DRAIN.
const (
	drainShutdown   = "shutdown"   // the process ends: connect elsewhere
	drainReplaced   = "replaced"   // another process uses the same agent id: wait
	drainRenewed    = "renewed"    // this process has a newer session: nothing to do
	drainCredential = "credential" // what admitted the session is no longer valid: reconnect
	drainExhausted  = "exhausted"  // the session is out of stream ids: reconnect
)

type drainMessage struct {
	Reason string `json:"reason"`
}

// Codes of RESET.
const (
	resetAbort  = "abort"  // both directions, at once
	resetUnread = "unread" // the sender of this message reads no more
	resetAck    = "ack"    // an abort was carried out: the FIN may follow
)

type resetMessage struct {
	Stream uint32 `json:"stream"`
	Code   string `json:"code"`
	Reason string `json:"reason,omitempty"`
}

// peersMessage names the servers that an agent should have a session with.
// The first one also tells the agent that it has been accepted.
type peersMessage struct {
	Servers []string `json:"servers,omitempty"`
}

// Codes of BYE.
const (
	byeVersion = "version" // no common protocol version
	byeHello   = "hello"   // HELLO is missing or malformed
	byeQuota   = "quota"   // too many agents in the cluster
	byeKnown   = "known"   // the agent has a session with this server already
	byeDone    = "done"    // the session has drained
	byeDenied  = "denied"  // the credential no longer admits the agent
)

// byeMessage ends a session and says why.
type byeMessage struct {
	Code       string `json:"code"`
	Reason     string `json:"reason,omitempty"`
	RetryAfter int    `json:"retryAfter,omitempty"` // seconds
}

// byeError is a BYE that was received.
type byeError struct{ byeMessage }

func (e *byeError) Error() string {
	return fmt.Sprintf("tunnel: peer ended the session: %s: %s", e.Code, e.Reason)
}

// decodeBye returns a *byeError, or what is wrong with the message.
func decodeBye(body []byte) error {
	bye := &byeError{}
	if err := decodeMessage(typeBye, body, &bye.byeMessage); err != nil {
		return err
	}
	bye.Code, bye.Reason = clip(bye.Code), clip(bye.Reason)
	return bye
}

// clip cuts what a peer says for people to what fits a log line.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// encodeMessage returns the message's bytes.
func encodeMessage(t messageType, payload any) ([]byte, error) {
	body, err := json.Marshal(payload)
	if err != nil {
		return nil, err
	}
	if len(body) > maxMessage {
		return nil, fmt.Errorf("tunnel: control message %d of %d bytes is too long", t, len(body))
	}
	b := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(b, uint32(len(body)))
	b[0] = byte(t)
	return append(b, body...), nil
}

// readMessage reads one message; io.EOF only between two.
func readMessage(r io.Reader) (messageType, []byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	t := messageType(head[0])
	head[0] = 0
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return t, nil, fmt.Errorf("tunnel: control message %d of %d bytes is too long", t, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return t, nil, err
	}
	return t, body, nil
}

func decodeMessage(t messageType, body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("tunnel: control message %d: %w", t, err)
	}
	return nil
}
