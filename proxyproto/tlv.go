package proxyproto

import (
	"fmt"

	codec "github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// TLV is one extension of a version 2 header: a type and a value of up to 64
// KiB, less what the whole header may have.
type TLV struct {
	Type  TLVType
	Value []byte
}

// TLVType says what the value of a TLV means.
type TLVType byte

// Types of TLVs, §2.2 of the specification. Those from TypeCustomMin to
// TypeCustomMax are for applications to use as they like.
const (
	TypeALPN      TLVType = 0x01 // protocol that was negotiated with the client
	TypeAuthority TLVType = 0x02 // host name that the client asked for, UTF-8
	TypeCRC32C    TLVType = 0x03 // checksum over the header, see [WriteHeader]
	TypeNoop      TLVType = 0x04 // padding; a header that was read has no value here
	TypeUniqueID  TLVType = 0x05 // name of the connection, up to 128 bytes
	TypeSSL       TLVType = 0x20 // what TLS knows of the client, see [SSL]
	TypeNetNS     TLVType = 0x30 // name of a network namespace, US-ASCII

	TypeCustomMin TLVType = 0xE0
	TypeCustomMax TLVType = 0xEF
)

// Types of TLVs within an [SSL], §2.2.6.
const (
	TypeSSLVersion    TLVType = 0x21 // version of TLS, such as "TLSv1.3"
	TypeSSLCommonName TLVType = 0x22 // CN of the client's certificate, UTF-8
	TypeSSLCipher     TLVType = 0x23 // cipher, by the name that OpenSSL gives it
	TypeSSLSigAlg     TLVType = 0x24 // what the server's certificate is signed with
	TypeSSLKeyAlg     TLVType = 0x25 // kind of key of the server's certificate
	TypeSSLGroup      TLVType = 0x26 // group of the key exchange
	TypeSSLSigScheme  TLVType = 0x27 // what the server signed the handshake with
	TypeSSLClientCert TLVType = 0x28 // the client's certificate, DER
)

// SSLFlags says how a client used TLS.
type SSLFlags byte

// Bits of SSL.Client.
const (
	SSLConnected  SSLFlags = 0x01 // the client connected over TLS
	SSLCertOfConn SSLFlags = 0x02 // it sent a certificate over this connection
	SSLCertOfSess SSLFlags = 0x04 // it sent one in this TLS session, maybe earlier
)

// SSL is what a sender that ended TLS tells of it. It is a claim like the
// rest of the header.
type SSL struct {
	// Client says what the client did.
	Client SSLFlags
	// Verify is 0 if the client sent a certificate and it was found good; see
	// [SSL.Verified].
	Verify uint32
	// TLVs are the details, of types from TypeSSLVersion on. TypeSSLVersion is
	// obligatory if Client has SSLConnected.
	TLVs []TLV
}

// Verified reports whether the client sent a certificate, now or earlier in the
// session, that the sender found good.
func (s *SSL) Verified() bool { return s.Client&(SSLCertOfConn|SSLCertOfSess) != 0 && s.Verify == 0 }

// TLV returns the value of the first detail of that type, and whether there is
// one. The value must not be changed.
func (s *SSL) TLV(t TLVType) (value []byte, ok bool) {
	return find(s.TLVs, t)
}

// Version returns the version of TLS, such as "TLSv1.3", or "".
func (s *SSL) Version() string { v, _ := s.TLV(TypeSSLVersion); return string(v) }

// CommonName returns the CN of the client's certificate, or "".
func (s *SSL) CommonName() string { v, _ := s.TLV(TypeSSLCommonName); return string(v) }

// Encode returns the TLV that goes into a Header. The error is an
// [ErrInvalid].
func (s *SSL) Encode() (TLV, error) {
	if _, ok := s.TLV(TypeSSLVersion); s.Client&SSLConnected != 0 && !ok {
		return TLV{}, fmt.Errorf("proxyproto: %w: SSL without the version of TLS", ErrInvalid)
	}
	raw := tlvparse.PP2SSL{Client: uint8(s.Client), Verify: s.Verify, TLV: toCodec(s.TLVs)}
	t, err := raw.Marshal()
	if err != nil {
		return TLV{}, fmt.Errorf("proxyproto: %w: %w", ErrInvalid, err)
	}
	return TLV{Type: TypeSSL, Value: t.Value}, nil
}

// SSL returns what the sender tells of TLS, or nil if it tells nothing. The
// error is an [ErrMalformed]; reading a header does not look into this TLV.
func (h *Header) SSL() (*SSL, error) {
	v, ok := h.TLV(TypeSSL)
	if !ok {
		return nil, nil
	}
	raw, err := tlvparse.SSL(codec.TLV{Type: codec.PP2_TYPE_SSL, Value: v})
	if err != nil {
		return nil, &HeaderError{Err: fmt.Errorf("%w: SSL: %w", ErrMalformed, err)}
	}
	return &SSL{Client: SSLFlags(raw.Client), Verify: raw.Verify, TLVs: fromCodec(raw.TLV)}, nil
}

func find(tlvs []TLV, t TLVType) (value []byte, ok bool) {
	for _, tlv := range tlvs {
		if tlv.Type == t {
			return tlv.Value, true
		}
	}
	return nil, false
}

func toCodec(tlvs []TLV) []codec.TLV {
	raw := make([]codec.TLV, len(tlvs))
	for i, t := range tlvs {
		raw[i] = codec.TLV{Type: codec.PP2Type(t.Type), Value: t.Value}
	}
	return raw
}

// fromCodec copies the values into one array, which is all that lives as long as
// the header does.
func fromCodec(raw []codec.TLV) []TLV {
	if len(raw) == 0 {
		return nil
	}
	size := 0
	for _, t := range raw {
		size += len(t.Value)
	}
	values := make([]byte, 0, size)
	tlvs := make([]TLV, len(raw))
	for i, t := range raw {
		tlvs[i].Type = TLVType(t.Type)
		if t.Value != nil { // else padding
			from := len(values)
			values = append(values, t.Value...)
			tlvs[i].Value = values[from:len(values):len(values)]
		}
	}
	return tlvs
}
