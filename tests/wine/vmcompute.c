/* vmcompute.dll: answers what version HNS has. */
#include <windows.h>
#include <objbase.h>
#include <wchar.h>

__declspec(dllexport) HRESULT WINAPI HNSCall(PCWSTR Method, PCWSTR Path, PCWSTR Object, PWSTR *Response)
{
    static const wchar_t version[] = L"{\"Success\":true,\"Output\":{\"Major\":15,\"Minor\":5}}";
    if (wcscmp(Method, L"GET") || wcscmp(Path, L"/globals/version"))
        return E_INVALIDARG;
    *Response = CoTaskMemAlloc(sizeof version);
    memcpy(*Response, version, sizeof version);
    return S_OK;
}
