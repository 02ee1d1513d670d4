package tunneltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// longAgo is when certificates become valid by default: before the first of January
// 2000, the day on which time begins in a [Bubble], so that a certificate made
// outside of a bubble is valid inside.
var longAgo = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)

// CA is a throw-away certificate authority with an ECDSA P-256 key, for tests and
// examples. [NewCA] makes one; it has no useful zero value. Its methods may be
// called by several goroutines at once.
type CA struct {
	// Cert is the authority's own certificate. It must not be changed.
	Cert *x509.Certificate

	key   *ecdsa.PrivateKey
	chain [][]byte // what an issued certificate carries along: the intermediates, DER
}

// CertOptions says what an issued certificate holds.
type CertOptions struct {
	CommonName string
	DNS        []string // DNS SANs
	IPs        []string // IP SANs, as text
	URIs       []string // URI SANs
	Cluster    string   // not empty: one more URI SAN, rhizome://cluster/NAME

	// NotBefore is when the certificate becomes valid; zero means 1999, which is also
	// before the fake time of a [Bubble].
	NotBefore time.Time
	// NotAfter is when it expires; zero means 24 hours from now.
	NotAfter time.Time

	// Client and Server choose the extended key usages; neither means both.
	Client, Server bool
}

// Cert is an issued certificate with its key.
type Cert struct {
	TLS             tls.Certificate // ready for tls.Config.Certificates, Leaf is set
	CertPEM, KeyPEM []byte          // the same as PEM: leaf first, then intermediates
}

// NewCA makes a self-signed authority that is valid from 1999 until ten years from
// now.
func NewCA(commonName string) (*CA, error) {
	return newCA(CertOptions{CommonName: commonName}, nil)
}

// Intermediate makes an authority below this one. What it issues carries its
// certificate along, so a peer needs to know only the root. Zero times mean those
// of [NewCA]; usages are not written.
func (ca *CA) Intermediate(o CertOptions) (*CA, error) { return newCA(o, ca) }

func newCA(o CertOptions, parent *CA) (*CA, error) {
	if o.NotAfter.IsZero() {
		o.NotAfter = time.Now().AddDate(10, 0, 0)
	}
	t, err := template(o)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	key, der, err := sign(t, parent)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("tunneltest: %w", err)
	}
	ca := &CA{Cert: cert, key: key}
	if parent != nil {
		ca.chain = append([][]byte{der}, parent.chain...)
	}
	return ca, nil
}

// Issue makes a key and a certificate for it.
func (ca *CA) Issue(o CertOptions) (*Cert, error) {
	t, err := template(o)
	if err != nil {
		return nil, err
	}
	key, der, err := sign(t, ca)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("tunneltest: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("tunneltest: %w", err)
	}
	c := &Cert{
		TLS:    tls.Certificate{Certificate: append([][]byte{der}, ca.chain...), PrivateKey: key, Leaf: leaf},
		KeyPEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
	for _, der := range c.TLS.Certificate {
		c.CertPEM = append(c.CertPEM, certPEM(der)...)
	}
	return c, nil
}

// PEM returns the authority's certificate.
func (ca *CA) PEM() []byte { return certPEM(ca.Cert.Raw) }

// Pool returns a new pool that holds the authority's certificate alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	return pool
}

// WriteFile writes the authority's certificate to name.crt in dir and returns the
// path. An existing file is replaced by renaming, as an atomic update would do.
func (ca *CA) WriteFile(dir, name string) (file string, err error) {
	file = filepath.Join(dir, name+".crt")
	return file, replaceFile(file, ca.PEM())
}

// WriteFiles writes the certificate to name.crt and its key to name.key in dir
// (mode 0600) and returns both paths. Existing files are replaced one after the
// other, each by renaming.
func (c *Cert) WriteFiles(dir, name string) (certFile, keyFile string, err error) {
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if err = replaceFile(certFile, c.CertPEM); err == nil {
		err = replaceFile(keyFile, c.KeyPEM)
	}
	return certFile, keyFile, err
}

func replaceFile(file string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".tmp*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func template(o CertOptions) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("tunneltest: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: o.CommonName},
		NotBefore:    o.NotBefore,
		NotAfter:     o.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		DNSNames:     o.DNS,
	}
	if t.NotBefore.IsZero() {
		t.NotBefore = longAgo
	}
	if t.NotAfter.IsZero() {
		t.NotAfter = time.Now().Add(24 * time.Hour)
	}
	if o.Client || !o.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if o.Server || !o.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, s := range o.IPs {
		ip := net.ParseIP(s)
		if ip == nil {
			return nil, fmt.Errorf("tunneltest: %q is not an IP address", s)
		}
		t.IPAddresses = append(t.IPAddresses, ip)
	}
	uris := o.URIs
	if o.Cluster != "" {
		uris = append(uris[:len(uris):len(uris)], "rhizome://cluster/"+o.Cluster)
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("tunneltest: %w", err)
		}
		t.URIs = append(t.URIs, u)
	}
	return t, nil
}

// sign makes a key and has the parent sign the template for it; no parent means
// self-signed.
func sign(t *x509.Certificate, parent *CA) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("tunneltest: %w", err)
	}
	issuer, issuerKey := t, key
	if parent != nil {
		issuer, issuerKey = parent.Cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return nil, nil, fmt.Errorf("tunneltest: %w", err)
	}
	return key, der, nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
